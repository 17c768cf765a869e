// Shows what a node of this pack reports ("text" of its ui output) in a read-only box on the node itself.
import { app } from "../../scripts/app.js";
import { ComfyWidgets } from "../../scripts/widgets.js";

const REPORT = "report";

function show(node, text) {
  let widget = node.widgets?.find((w) => w.name === REPORT);
  if (!widget) {
    widget = ComfyWidgets.STRING(node, REPORT, ["STRING", { multiline: true }], app).widget;
    widget.serialize = false; // neither in the saved workflow's values …
    widget.options = { ...widget.options, serialize: false, read_only: true }; // … nor in the queued prompt
    if (widget.inputEl) widget.inputEl.readOnly = true;
  }
  widget.value = text;
  const [width, height] = node.computeSize();
  node.setSize([Math.max(width, node.size[0]), Math.max(height, node.size[1])]);
  app.graph.setDirtyCanvas(true, true);
}

app.registerExtension({
  name: "zimage-vl.report",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!nodeData.name.startsWith("ZImageVL")) return;
    const onExecuted = nodeType.prototype.onExecuted;
    nodeType.prototype.onExecuted = function (output) {
      onExecuted?.apply(this, arguments);
      if (output?.text?.length) show(this, output.text.join("\n"));
    };
  },
});
