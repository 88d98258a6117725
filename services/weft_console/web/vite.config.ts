import { defineConfig } from "vite";

// Everything is bundled and small inline assets stay files: the page's content security policy allows only its own origin.
export default defineConfig({
  base: "/",
  build: { outDir: "../static", emptyOutDir: true, assetsInlineLimit: 0, modulePreload: { polyfill: false }, target: "es2022" },
});
