// A read-only box on every node of this pack that shows what the node reports ("text" of its ui output).
import { app } from "../../scripts/app.js";

const REPORT = "report";
const MIN_HEIGHT = 88; // five lines; longer reports scroll, or make the node larger
const MAX_HEIGHT_BESIDE_PICTURES = 110; // what a node has left over goes to its pictures

function addBox(node) {
  const { widget } = app.widgets.STRING(node, REPORT, ["STRING", { multiline: true, placeholder: "What it did, after a run" }], app);
  widget.serialize = false; // not in the saved workflow's values …
  widget.options.serialize = false; // … nor in the queued prompt
  widget.options.getMinHeight = () => MIN_HEIGHT;
  widget.options.read_only = true; // for Nodes 2.0
  widget.element.readOnly = true; // for classic nodes
}

function show(node, output) {
  const widget = node?.widgets?.find((w) => w.name === REPORT);
  if (widget && output?.text?.length) widget.value = output.text.join("\n");
  if (widget && output?.images?.length) leaveRoom(node);
}

function leaveRoom(node) {
  for (const widget of node.widgets)
    if (widget.element?.tagName === "TEXTAREA") widget.options.getMaxHeight = () => MAX_HEIGHT_BESIDE_PICTURES;
}

const isOurs = (type) => type?.startsWith("ZImageVL");

app.registerExtension({
  name: "zimage-vl.report",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!isOurs(nodeData.name)) return;
    const { onNodeCreated, onExecuted } = nodeType.prototype;
    nodeType.prototype.onNodeCreated = function () {
      onNodeCreated?.apply(this, arguments);
      addBox(this);
    };
    nodeType.prototype.onExecuted = function (output) {
      onExecuted?.apply(this, arguments);
      show(this, output);
    };
  },
  // Coming back to a workflow's tab builds its nodes anew: give them their reports back.
  onNodeOutputsUpdated(outputs) {
    for (const [id, output] of Object.entries(outputs)) {
      const node = app.graph.getNodeById(id);
      if (isOurs(node?.type)) show(node, output);
    }
  },
});
