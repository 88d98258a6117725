/**
 * Scrolling over more rows than a browser can make tall.
 *
 * Browsers stop at some 17 to 33 million pixels. Beyond a limit, the bar stands for a shorter height: its first and last
 * stretches are as they are, what lies between is pressed together. Small steps still move by what the wheel says; only
 * jumps go by the bar.
 */

export const MAX_HEIGHT = 8_000_000;
const ENDS = 200_000;

/** How tall the rows are, and how tall they are made. */
export interface Extent {
  real: number;
  shown: number;
}

export function extentOf(numRows: number, rowHeight: number): Extent {
  const real = numRows * rowHeight;
  return { real, shown: Math.min(real, MAX_HEIGHT) };
}

/** Where the bar stands, in shown pixels, when the rows stand at `top`. */
export function barOf(top: number, { real, shown }: Extent, view: number): number {
  if (real === shown || top <= ENDS) return top;
  const fromEnd = real - view - top;
  if (fromEnd <= ENDS) return shown - view - fromEnd;
  return ENDS + ((top - ENDS) * (shown - view - 2 * ENDS)) / (real - view - 2 * ENDS);
}

/** Where the rows stand when the bar stands at `bar`. */
export function topOf(bar: number, { real, shown }: Extent, view: number): number {
  if (real === shown || bar <= ENDS) return bar;
  const fromEnd = shown - view - bar;
  if (fromEnd <= ENDS) return real - view - fromEnd;
  return ENDS + ((bar - ENDS) * (real - view - 2 * ENDS)) / (shown - view - 2 * ENDS);
}

/** Where the rows stand after the bar moved from `before` to `bar`. */
export function moved(top: number, before: number, bar: number, extent: Extent, view: number): number {
  const step = bar - before;
  const isJump = extent.real === extent.shown || Math.abs(step) > 2 * view;
  const next = isJump ? topOf(bar, extent, view) : top + step;
  return Math.max(0, Math.min(extent.real - view, next));
}

/** Where the rows must stand for a row to be seen whole. */
export function topFor(row: number, rowHeight: number, top: number, view: number): number {
  if (row * rowHeight < top) return row * rowHeight;
  return Math.max(top, (row + 1) * rowHeight - view);
}
