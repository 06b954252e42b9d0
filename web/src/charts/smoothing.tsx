import { Slider } from "@mantine/core";
import { useUrl } from "../ui/url";

const DEFAULT = 0.6;
const KEPT_AS = "limner.smoothing";

/** One smoothing for every view: the address's, or else the one that was chosen last in this browser. */
export function useSmoothing(): [number, (smoothing: number) => void] {
  const [url, setUrl] = useUrl();
  const asked = Number(url.get("smooth") ?? localStorage.getItem(KEPT_AS) ?? DEFAULT);
  const choose = (smoothing: number): void => {
    localStorage.setItem(KEPT_AS, String(smoothing));
    setUrl({ smooth: String(smoothing) });
  };
  return [asked >= 0 && asked < 1 ? asked : DEFAULT, choose];
}

export function SmoothingSlider() {
  const [smoothing, choose] = useSmoothing();
  return (
    <div className="smoothing">
      <span aria-hidden="true">Smoothing</span>
      <Slider
        thumbLabel="Smoothing"
        min={0}
        max={0.99}
        step={0.01}
        label={(value) => value.toFixed(2)}
        defaultValue={smoothing}
        onChangeEnd={choose}
      />
    </div>
  );
}
