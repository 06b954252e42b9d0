import { createTheme, type MantineColorsTuple } from "@mantine/core";

const ultramarine: MantineColorsTuple = [
  "#eef2ff",
  "#dbe3fd",
  "#b8c7fa",
  "#91a8f6",
  "#7c9bff",
  "#4d6fe8",
  "#2f55d4",
  "#2447b8",
  "#1d3a98",
  "#152b73",
];

// Warm greys: paper and ink instead of Mantine's own.
const gray: MantineColorsTuple = [
  "#faf9f6",
  "#f3f1ec",
  "#e8e4dc",
  "#dbd6cb",
  "#cfc9bd",
  "#a9a297",
  "#6d675e",
  "#544f47",
  "#3a362f",
  "#1d1b18",
];
const dark: MantineColorsTuple = [
  "#ece9e2",
  "#bbb7ad",
  "#99958c",
  "#6b6a6b",
  "#434854",
  "#2c2f37",
  "#22252b",
  "#1b1d22",
  "#17181c",
  "#141519",
];

export const theme = createTheme({
  primaryColor: "ultramarine",
  primaryShade: { light: 7, dark: 6 },
  colors: { ultramarine, gray, dark },
  fontFamily: "InterVariable, Inter, system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif",
  fontFamilyMonospace: "ui-monospace, 'SF Mono', 'JetBrains Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace",
  defaultRadius: "sm",
  cursorType: "pointer",
  focusRing: "auto",
  respectReducedMotion: true,
  components: {
    Button: { defaultProps: { size: "xs" } },
    ActionIcon: { defaultProps: { size: "md", variant: "subtle", color: "gray" } },
    InputWrapper: { defaultProps: { inputWrapperOrder: ["label", "input", "description", "error"] } },
    TextInput: { defaultProps: { size: "xs" } },
    NumberInput: { defaultProps: { size: "xs" } },
    Select: { defaultProps: { size: "xs", checkIconPosition: "right" } },
    Textarea: { defaultProps: { size: "xs" } },
    TagsInput: { defaultProps: { size: "xs" } },
    SegmentedControl: { defaultProps: { size: "xs" } },
    Switch: { defaultProps: { size: "xs" } },
    Checkbox: { defaultProps: { size: "xs" } },
    Slider: { defaultProps: { size: "sm" } },
    Tooltip: { defaultProps: { openDelay: 350, transitionProps: { duration: 0 } } },
    Modal: { defaultProps: { lockScroll: false, transitionProps: { duration: 0 }, centered: true } },
    Menu: { defaultProps: { transitionProps: { duration: 0 } } },
  },
});
