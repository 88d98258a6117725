/** Figures of transcoders that are worked out here. */

export function mean(values: number[]): number {
  return values.length === 0 ? 0 : values.reduce((sum, value) => sum + value, 0) / values.length;
}

/** Parameters of encoders, decoders and biases; `window` layers a feature writes to, 0 for all from its own on. */
export function numParameters(shape: { num_layers: number; num_features: number; d_model: number; window: number }): number {
  let decoders = 0;
  for (let layer = 0; layer < shape.num_layers; layer++) {
    decoders += shape.window > 0 ? Math.min(shape.window, shape.num_layers - layer) : shape.num_layers - layer;
  }
  const { num_layers: layers, num_features: features, d_model: width } = shape;
  return layers * (features * width + features + width) + decoders * features * width;
}

/** An id for an index that a person recognises. */
export function indexId(dataset: string, taken: string[]): string {
  const base = (dataset || "index").slice(0, 56);
  if (!taken.includes(base)) return base;
  let number = 2;
  while (taken.includes(`${base}-${number}`)) number++;
  return `${base}-${number}`;
}
