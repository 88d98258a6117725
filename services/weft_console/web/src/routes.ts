/** The address bar as state: pages are plain paths, so that every one can be shared and reloaded. */
import { useEffect, useState } from "preact/hooks";

export interface Route {
  section: "graphs" | "lab" | "runs" | "datasets" | "transcoders" | "interpretation" | "inside" | "unknown";
  id: string | null;
  /** What follows the id, where anything does. */
  rest?: string[];
}

const UNKNOWN: Route = { section: "unknown", id: null };

/** The pages that the navigation leads to, with what they are called. */
export const SECTIONS = [["graphs", "Graphs"], ["lab", "Lab"], ["runs", "Runs"], ["datasets", "Datasets"], ["transcoders", "Transcoders"], ["interpretation", "Labels"], ["inside", "Inside"]] as const;

export function parseRoute(path: string): Route {
  const [section = "", id = "", ...rest] = path.split("/").filter(Boolean);
  if (section === "transcoders" && isFeatures(rest)) return { section, id: decodeURIComponent(id), rest };
  if (rest.length > 0) return UNKNOWN;
  if (section === "") return { section: "graphs", id: null };
  if ((section === "inside" || section === "lab") && !id) return { section, id: null };
  if (section === "transcoders" || section === "interpretation") return { section, id: id ? decodeURIComponent(id) : null };
  if (section === "graphs" || section === "runs" || section === "datasets") return { section, id: id ? decodeURIComponent(id) : null };
  return UNKNOWN;
}

/** `features` and `features/{layer}/{index}`. */
function isFeatures(rest: string[]): boolean {
  return rest[0] === "features" && (rest.length === 1 || (rest.length === 3 && rest.slice(1).every((part) => /^\d{1,9}$/.test(part))));
}

export function navigate(path: string): void {
  keep("scroll", window.scrollY);
  history.pushState(null, "", path);
  window.dispatchEvent(new PopStateEvent("popstate"));
  window.scrollTo(0, 0);
}

/** Keeps something with this place in the browser's history: who comes back to it finds it. */
export function keep(name: string, value: unknown): void {
  history.replaceState({ ...(history.state as Record<string, unknown> | null), [name]: value }, "");
}

/** What was kept there; undefined where nothing was. */
export function kept(name: string): unknown {
  return (history.state as Record<string, unknown> | null)?.[name];
}

const RESTORE_MS = 4000;

/** Takes a page that is come back to where it stood, once it is long enough for that; whoever moves it first is left alone. */
function restoreScroll(): void {
  const top = kept("scroll");
  if (typeof top !== "number" || top === 0) return;
  const abort = new AbortController();
  const watch = new ResizeObserver(() => {
    if (document.documentElement.scrollHeight < top + window.innerHeight) return;
    window.scrollTo(0, top);
    abort.abort();
  });
  const timer = window.setTimeout(() => abort.abort(), RESTORE_MS);
  abort.signal.addEventListener("abort", () => {
    watch.disconnect();
    window.clearTimeout(timer);
  });
  for (const name of ["wheel", "touchstart", "pointerdown", "keydown", "popstate"]) window.addEventListener(name, () => abort.abort(), { signal: abort.signal });
  // The body is as high as the window, whatever is in it.
  watch.observe(document.getElementById("app")!);
}

/** The current route; clicks on plain links of this page change it without a reload. */
export function useRoute(): Route {
  // What is asked for after a `?` belongs to the page: another question draws it anew.
  const [path, setPath] = useState(location.pathname + location.search);
  useEffect(() => {
    const onPop = () => setPath(location.pathname + location.search);
    const onClick = (event: MouseEvent) => {
      const link = (event.target as Element).closest?.("a");
      if (!link || link.origin !== location.origin || link.target || link.hasAttribute("download")) return;
      // A place on this page is the browser's to go to.
      if (link.hash && link.pathname === location.pathname && link.search === location.search) return;
      if (event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
      event.preventDefault();
      navigate(link.pathname + link.search + link.hash);
    };
    window.addEventListener("popstate", onPop);
    window.addEventListener("popstate", restoreScroll);
    document.addEventListener("click", onClick);
    return () => {
      window.removeEventListener("popstate", onPop);
      window.removeEventListener("popstate", restoreScroll);
      document.removeEventListener("click", onClick);
    };
  }, []);
  return parseRoute(path.replace(/\?.*/, ""));
}
