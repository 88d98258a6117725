/** Finds room for labels beside their nodes: over no other label, over as few nodes as can be, and within the drawing. */

/** A box in pixels: left, top, right, bottom. */
export type Box = [number, number, number, number];

/** Round marks in pixels, by place in the arrays. */
export interface Marks {
  x: ArrayLike<number>;
  y: ArrayLike<number>;
  radius: ArrayLike<number>;
}

export interface Wanted {
  /** Place of the label's own mark. */
  mark: number;
  width: number;
}

export interface Room {
  /** What no label may leave. */
  bounds: Box;
  height: number;
  /** Between a mark and its label. */
  gap: number;
  /** Between two labels. */
  margin: number;
  /** Most marks of others that a label may lie over. */
  mostCovered: number;
  /** Most labels. */
  limit: number;
}

export function overlaps(one: Box, other: Box): boolean {
  return one[0] < other[2] && other[0] < one[2] && one[1] < other[3] && other[1] < one[3];
}

/**
 * A box for each label that finds room, in order: the first ones choose first. Beside its node to the right is best, then
 * to the left, above and below; of those the one that lies over the fewest marks is taken.
 *
 * `taken` are boxes that are there already, `others` the places of the marks that are drawn.
 */
export function placeLabels(wanted: Wanted[], marks: Marks, others: ArrayLike<number>, taken: readonly Box[], room: Room): (Box | null)[] {
  const { bounds, height, gap, margin } = room;
  const full = [...taken];
  let placed = 0;
  return wanted.map(({ mark, width }) => {
    if (placed >= room.limit) return null;
    const x = marks.x[mark]!;
    const y = marks.y[mark]!;
    const away = marks.radius[mark]! + gap;
    const boxes: Box[] = [
      [x + away, y - height / 2, x + away + width, y + height / 2],
      [x - away - width, y - height / 2, x - away, y + height / 2],
      [x - width / 2, y - away - height, x + width / 2, y - away],
      [x - width / 2, y + away, x + width / 2, y + away + height],
    ];
    let best: Box | null = null;
    let least = room.mostCovered + 1;
    for (const box of boxes) {
      if (box[0] < bounds[0] || box[1] < bounds[1] || box[2] > bounds[2] || box[3] > bounds[3]) continue;
      const wide: Box = [box[0] - margin, box[1] - margin, box[2] + margin, box[3] + margin];
      if (full.some((other) => overlaps(wide, other))) continue;
      const covered = numCovered(box, marks, others, mark, least);
      if (covered < least) {
        least = covered;
        best = box;
      }
      if (least === 0) break;
    }
    if (best) {
      full.push(best);
      placed++;
    }
    return best;
  });
}

/** Marks under a box, less its own; counting ends at `enough`. */
function numCovered(box: Box, { x, y, radius }: Marks, others: ArrayLike<number>, own: number, enough: number): number {
  let covered = 0;
  for (let i = 0; i < others.length && covered < enough; i++) {
    const mark = others[i]!;
    const dx = Math.max(box[0] - x[mark]!, 0, x[mark]! - box[2]);
    const dy = Math.max(box[1] - y[mark]!, 0, y[mark]! - box[3]);
    if (mark !== own && dx * dx + dy * dy < radius[mark]! * radius[mark]!) covered++;
  }
  return covered;
}
