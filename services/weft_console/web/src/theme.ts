/** Light, dark, or what the system says. */
export type Theme = "system" | "light" | "dark";
const KEY = "weft.theme";
const NEXT: Record<Theme, Theme> = { system: "light", light: "dark", dark: "system" };

export function currentTheme(): Theme {
  const stored = localStorage.getItem(KEY);
  return stored === "light" || stored === "dark" ? stored : "system";
}

export function nextTheme(): Theme {
  const theme = NEXT[currentTheme()];
  if (theme === "system") {
    localStorage.removeItem(KEY);
    delete document.documentElement.dataset.theme;
  } else {
    localStorage.setItem(KEY, theme);
    document.documentElement.dataset.theme = theme;
  }
  window.dispatchEvent(new Event("weft-theme"));
  return theme;
}

/** Calls back when the colours change, for what is drawn and not styled. */
export function onTheme(callback: () => void): () => void {
  const media = matchMedia("(prefers-color-scheme: dark)");
  media.addEventListener("change", callback);
  window.addEventListener("weft-theme", callback);
  return () => {
    media.removeEventListener("change", callback);
    window.removeEventListener("weft-theme", callback);
  };
}
