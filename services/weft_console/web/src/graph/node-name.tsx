import { OriginMark } from "../ui/origin";
import type { GraphNode } from "./model";

/** What a node is called; where that is a label, who said it. */
export function NodeName({ node }: { node: GraphNode }) {
  return <>{node.label}{node.stands ? <> <OriginMark label={node.stands} /></> : null}</>;
}
