/** Two bars from the middle, what was predicted over what was measured. */
export function Pair({ predicted, measured, most }: { predicted: number; measured: number; most: number }) {
  const bar = (value: number, name: string) => (
    <i class={`pair-bar is-${name}${value < 0 ? " is-negative" : ""}`} style={{ width: `${(50 * Math.abs(value)) / most}%`, [value < 0 ? "right" : "left"]: "50%" }} />
  );
  return <span class="pair" aria-hidden="true">{bar(predicted, "predicted")}{bar(measured, "measured")}</span>;
}
