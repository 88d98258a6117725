/** Of many buttons one is in the page's tab order: the one that had the keyboard last. Arrows reach the others. */
export function takeTabStop(host: HTMLElement, button: HTMLElement, selector: string): void {
  host.querySelectorAll<HTMLElement>(`${selector}[tabindex="0"]`).forEach((one) => { one.tabIndex = -1; });
  button.tabIndex = 0;
}

/** The button beside another one among those that a selector names, by the arrows; null for other keys and at the ends. */
export function beside(host: HTMLElement, button: HTMLElement, selector: string, key: string): HTMLElement | null {
  const step = key === "ArrowLeft" ? -1 : key === "ArrowRight" ? 1 : 0;
  if (step === 0) return null;
  const all = [...host.querySelectorAll<HTMLElement>(selector)];
  return all[all.indexOf(button) + step] ?? null;
}
