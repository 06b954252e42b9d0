import react from "@vitejs/plugin-react";
import { defineConfig } from "vitest/config";

const server = process.env.LIMNER_SERVER ?? "http://127.0.0.1:8000";

export default defineConfig({
  plugins: [react()],
  build: {
    outDir: "../src/limner/server/page",
    emptyOutDir: true,
    target: "es2023",
    assetsInlineLimit: 0, // the page's policy allows no data: scripts, styles or fonts
    chunkSizeWarningLimit: 300,
  },
  server: {
    proxy: {
      "/api": { target: server, changeOrigin: true },
      "/ws": { target: server, changeOrigin: true, ws: true },
    },
  },
  test: { include: ["src/**/*.test.ts"] },
});
