/** The address bar as state: pages are plain paths, so that every one can be shared and reloaded. */
import { useEffect, useState } from "preact/hooks";

export interface Route {
  section: "graphs" | "lab" | "runs" | "datasets" | "transcoders" | "interpretation" | "inside" | "unknown";
  id: string | null;
  /** What follows the id, where anything does. */
  rest?: string[];
}

const UNKNOWN: Route = { section: "unknown", id: null };

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
  history.pushState(null, "", path);
  window.dispatchEvent(new PopStateEvent("popstate"));
  window.scrollTo(0, 0);
}

/** The current route; clicks on plain links of this page change it without a reload. */
export function useRoute(): Route {
  // What is asked for after a `?` belongs to the page: another question draws it anew.
  const [path, setPath] = useState(location.pathname + location.search);
  useEffect(() => {
    const onPop = () => setPath(location.pathname + location.search);
    const onClick = (event: MouseEvent) => {
      const link = (event.target as Element).closest?.("a");
      if (!link || link.origin !== location.origin || link.target || link.hasAttribute("download") || link.hash) return;
      if (event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
      event.preventDefault();
      navigate(link.pathname + link.search);
    };
    window.addEventListener("popstate", onPop);
    document.addEventListener("click", onClick);
    return () => {
      window.removeEventListener("popstate", onPop);
      document.removeEventListener("click", onClick);
    };
  }, []);
  return parseRoute(path.replace(/\?.*/, ""));
}
