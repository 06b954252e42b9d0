// Line icons on a 16-pixel grid.
const PATHS = {
  pause: "M5.500 3.500v9M10.500 3.500v9",
  play: "M5 3.200v9.600L12.800 8z",
  stop: "M4 4h8v8H4z",
  kill: "M4 4l8 8M12 4l-8 8",
  save: "M8 2.500v7.500M4.800 7 8 10.200 11.200 7M3 13.500h10",
  pin: "M6 2.500h4l-.5 4 2 2v1.500h-7V8.500l2-2zM8 10v4",
  search: "M7 12A5 5 0 1 0 7 2a5 5 0 0 0 0 10zM10.700 10.700 14 14",
  table: "M2.500 3.500h11v9h-11zM2.500 6.500h11M2.500 9.500h11M6.500 3.500v9",
  sun: "M8 11a3 3 0 1 0 0-6 3 3 0 0 0 0 6zM8 1v1.500M8 13.500V15M1 8h1.500M13.500 8H15M3 3l1 1M12 12l1 1M13 3l-1 1M4 12l-1 1",
  moon: "M13 9.800A5.500 5.500 0 0 1 6.200 3 5.500 5.500 0 1 0 13 9.800z",
  help: "M8 14A6 6 0 1 0 8 2a6 6 0 0 0 0 12zM6.300 6.200a1.700 1.700 0 1 1 2.400 1.600c-.5.2-.7.5-.7 1.200M8 11.200v.1",
  trash: "M3 4.500h10M6.500 4.500V3h3v1.500M4.500 4.500l.5 9h6l.5-9",
  copy: "M5.500 5.500h7v8h-7zM3.500 10.500v-8h7",
  note: "M3 3h10v7l-3 3H3zM5.500 6h5M5.500 8.500h3",
  reset: "M3 8a5 5 0 1 0 1.500-3.600M3 2.500v2.500h2.500",
  more: "M3.500 8h.01M8 8h.01M12.500 8h.01",
  camera:
    "M2.500 5h2.800l1-1.500h3.400l1 1.500h2.800v8h-11zM8 11.200a2.200 2.200 0 1 0 0-4.400 2.200 2.200 0 0 0 0 4.400z",
  branch: "M4.500 3v10M4.500 9.500c4 0 6.500-1 6.500-4.500M9 6.500 11 4.500l2 2",
  spark: "M2 12l3.500-5 3 3L14 3.500",
} as const;

export type IconName = keyof typeof PATHS;

export function Icon({ name, size = 16 }: { name: IconName; size?: number }) {
  return (
    <svg
      width={size}
      height={size}
      viewBox="0 0 16 16"
      fill="none"
      stroke="currentColor"
      strokeWidth={name === "more" ? 2 : 1.4}
      strokeLinecap="round"
      strokeLinejoin="round"
      aria-hidden="true"
    >
      <path d={PATHS[name]} />
    </svg>
  );
}
