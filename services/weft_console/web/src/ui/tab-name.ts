/** What the browser's tab is called. */
import { useEffect } from "preact/hooks";
import { SECTIONS, type Route } from "../routes";

const LONGEST = 70;

/** What is known from the address alone; a page that knows more says so by `useTabName`. */
export function tabNameOf({ section, id, rest = [] }: Route): string {
  if (section === "unknown") return "No such page";
  const name = SECTIONS.find(([one]) => one === section)![1];
  if (id === null) return name;
  if (rest.length === 3) return `L${rest[1]} · ${rest[2]} · ${id}`;
  return rest.length === 1 ? `Features of ${id}` : `${id} · ${name}`;
}

/** Labels and prompts may be long, and have line ends. */
export function setTabName(name: string): void {
  const text = name.replace(/\s+/g, " ").trim();
  document.title = `${text.length > LONGEST ? `${text.slice(0, LONGEST - 1)}…` : text} · weft`;
}

/** Names the tab while this page is shown; null leaves the name that the address gives. */
export function useTabName(name: string | null): void {
  useEffect(() => {
    if (name !== null) setTabName(name);
  }, [name]);
}
