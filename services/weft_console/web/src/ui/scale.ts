/** Axes: round steps, and where a value stands. */

/** From where to where an axis of bars goes: 0 is on it, and where all is 0 it goes to 1. */
export function spanOf(values: number[]): [number, number] {
  const low = Math.min(...values, 0);
  const high = Math.max(...values, 0);
  return [low, high > low ? high : 1];
}

/** About `wanted` round values that cover low to high. */
export function ticks(low: number, high: number, wanted = 4): number[] {
  if (!(high > low)) return [low];
  const raw = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= raw) ?? raw;
  const values: number[] = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) values.push(i * step + 0);
  return values;
}

/** Powers of ten with 1, 2 and 5 between low and high; fewer where there are many. */
export function logTicks(low: number, high: number): number[] {
  const values: number[] = [];
  const decades = Math.log10(high / low);
  const factors = decades > 3 ? [1] : decades > 1.2 ? [1, 3] : [1, 1.5, 2, 3, 5, 7];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
    for (const factor of factors) {
      const value = factor * 10 ** power;
      if (value >= low * 0.999 && value <= high * 1.001) values.push(value);
    }
  }
  return values;
}

/** At most `limit` points: of each stretch the first, the least, the most and the last, so that no spike is lost. */
export function thin(points: [number, number][], limit: number): [number, number][] {
  if (points.length <= limit) return points;
  const size = Math.ceil(points.length / (limit / 4));
  const kept: [number, number][] = [];
  for (let start = 0; start < points.length; start += size) {
    const stretch = points.slice(start, start + size);
    let least = stretch[0]!;
    let most = stretch[0]!;
    for (const point of stretch) {
      if (point[1] < least[1]) least = point;
      if (point[1] > most[1]) most = point;
    }
    const unique = new Set([stretch[0]!, least, most, stretch[stretch.length - 1]!]);
    kept.push(...[...unique].sort((a, b) => a[0] - b[0]));
  }
  return kept;
}
