/**
 * Places nodes: a row a layer, a column a prompt position. World units; the view scales x and y apart.
 *
 * A cell with many nodes wraps into lines, so that a dense column stays readable.
 */
import type { GraphModel, GraphNode } from "./model";

/** Most and fewest nodes of one line of a cell: the more columns, the shorter, so that a page stays as wide as high. */
const LONGEST_LINE = 10;
const SHORTEST_LINE = 3;
const PAGE_NODES = 150;
/** World size of one node's place. */
export const PITCH = 1;
const COLUMN_GAP = 1.4;
const ROW_GAP = 0.9;
const EMPTY_ROW = 0.35;

export interface Layout {
  /** By node index, the logits' x left to the view. */
  x: Float64Array;
  y: Float64Array;
  width: number;
  height: number;
  columns: { start: number; end: number; center: number }[];
  /** Rows from the tokens (index 0) over the layers to the logits (last). */
  rows: { top: number; bottom: number; center: number; count: number }[];
}

/** Lays out all nodes of the file, once: pruning hides nodes and moves none. */
export function layOut(model: GraphModel): Layout {
  const numColumns = Math.max(model.tokens.length, 1);
  const numRows = model.numLayers + 2;
  const line = Math.max(SHORTEST_LINE, Math.min(LONGEST_LINE, Math.floor(PAGE_NODES / numColumns)));
  const cells = new Map<number, GraphNode[]>();
  for (const node of model.nodes) {
    const key = (node.row + 1) * numColumns + node.position;
    const cell = cells.get(key);
    if (cell) cell.push(node);
    else cells.set(key, [node]);
  }
  const perColumn = new Array<number>(numColumns).fill(1);
  const linesOfRow = new Array<number>(numRows).fill(0);
  const countOfRow = new Array<number>(numRows).fill(0);
  for (const [key, cell] of cells) {
    const row = Math.floor(key / numColumns);
    const column = key % numColumns;
    cell.sort((a, b) => a.cumulative - b.cumulative || a.index - b.index);
    countOfRow[row]! += cell.length;
    if (row === numRows - 1) {
      linesOfRow[row] = 1;
      continue;
    }
    perColumn[column] = Math.max(perColumn[column]!, Math.min(cell.length, line));
    linesOfRow[row] = Math.max(linesOfRow[row]!, Math.ceil(cell.length / line));
  }
  const columns: Layout["columns"] = [];
  let left = 0;
  for (const count of perColumn) {
    const width = Math.max(count, 3) * PITCH + COLUMN_GAP;
    columns.push({ start: left, end: left + width, center: left + width / 2 });
    left += width;
  }
  const rows: Layout["rows"] = new Array(numRows);
  let top = 0;
  for (let row = numRows - 1; row >= 0; row--) {
    const lines = linesOfRow[row]!;
    const isEnd = row === 0 || row === numRows - 1;
    const height = lines > 0 ? lines * PITCH + ROW_GAP + (isEnd ? 1 : 0) : EMPTY_ROW;
    rows[row] = { top, bottom: top + height, center: top + height / 2, count: countOfRow[row]! };
    top += height;
  }
  const x = new Float64Array(model.nodes.length);
  const y = new Float64Array(model.nodes.length);
  for (const [key, cell] of cells) {
    const row = rows[Math.floor(key / numColumns)]!;
    const column = columns[key % numColumns]!;
    const isLogits = cell[0]!.kind === "logit";
    const lines = Math.ceil(cell.length / line);
    cell.forEach((node, i) => {
      const at = Math.floor(i / line);
      const inLine = Math.min(line, cell.length - at * line);
      x[node.index] = column.center + ((i % line) - (inLine - 1) / 2) * PITCH;
      y[node.index] = isLogits ? row.center : row.center + (at - (lines - 1) / 2) * PITCH;
    });
  }
  return { x, y, width: left, height: top, columns, rows };
}
