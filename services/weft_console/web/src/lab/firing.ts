/** What fires where: features of a text by layer and token, the strongest first. */
import type { StandingLabel } from "../ui/origin";

export interface FiringFeature {
  layer: number;
  index: number;
  positions: number[];
  activations: number[];
  /** Largest activation here over the largest in the index; 0 where that is not known. */
  relative_max: number;
  label: StandingLabel | null;
}

export interface Firing {
  tokens: string[];
  features: FiringFeature[];
  /** Features that are active at all; those that are told may be fewer. */
  num_active_features: number;
}

export interface Fired {
  feature: FiringFeature;
  activation: number;
  /** From 0 to 1, what cells are shaded by. */
  strength: number;
}

export interface Grid {
  /** Highest first, as the model is read from below. */
  layers: number[];
  /** By `layer position`. */
  cells: Map<string, Fired[]>;
  /** Whether strengths are shares of the largest activation in an index; otherwise of the layer's largest on this text. */
  isIndexed: boolean;
}

export function cellKey(layer: number, position: number): string {
  return `${layer} ${position}`;
}

export function buildGrid(firing: Firing): Grid {
  const isIndexed = firing.features.some((feature) => feature.relative_max > 0);
  const largest = new Map<number, number>();
  for (const feature of firing.features) {
    largest.set(feature.layer, Math.max(largest.get(feature.layer) ?? 0, ...feature.activations));
  }
  const cells = new Map<string, Fired[]>();
  for (const feature of firing.features) {
    feature.positions.forEach((position, at) => {
      const activation = feature.activations[at]!;
      const fired = { feature, activation, strength: strengthOf(feature, activation, isIndexed, largest.get(feature.layer)!) };
      const key = cellKey(feature.layer, position);
      const cell = cells.get(key);
      if (cell) cell.push(fired);
      else cells.set(key, [fired]);
    });
  }
  for (const cell of cells.values()) cell.sort(stronger);
  return { layers: [...largest.keys()].sort((a, b) => b - a), cells, isIndexed };
}

function strengthOf(feature: FiringFeature, activation: number, isIndexed: boolean, layerLargest: number): number {
  if (!isIndexed) return layerLargest > 0 ? activation / layerLargest : 0;
  // A feature that the index never saw active has nothing to be held against.
  const most = Math.max(...feature.activations);
  return feature.relative_max > 0 && most > 0 ? Math.min(1, (activation / most) * feature.relative_max) : 1;
}

function stronger(one: Fired, other: Fired): number {
  return other.strength - one.strength || other.activation - one.activation || one.feature.index - other.feature.index;
}

/** Each feature once, at its strongest: on one token or on all, those whose name or label has every word. */
export function listed(grid: Grid, token: number | null, words: string): Fired[] {
  const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
  const best = new Map<FiringFeature, Fired>();
  for (const [key, cell] of grid.cells) {
    if (token !== null && Number(key.split(" ")[1]) !== token) continue;
    for (const fired of cell) {
      const before = best.get(fired.feature);
      if (!before || stronger(fired, before) < 0) best.set(fired.feature, fired);
    }
  }
  const has = ({ feature }: Fired) => {
    const text = `l${feature.layer} ${feature.index} ${feature.layer}-${feature.index} ${feature.label?.text ?? ""}`.toLowerCase();
    return wanted.every((word) => text.includes(word));
  };
  return [...best.values()].filter(has).sort((one, other) => stronger(one, other) || one.feature.layer - other.feature.layer);
}

/** What a feature is called: its label, or where it stands. */
export function featureName(feature: { layer: number; index: number; label?: StandingLabel | null }): string {
  return feature.label?.text || `L${feature.layer} · ${feature.index}`;
}
