
// For a notebook: anywidget calls `render` with a model that holds the message as bytes, and hears what was chosen.
export default {
  render({ model, el }) {
    let stop;
    const show = () => {
      stop?.();
      const view = model.get("data");
      const setTriggerValue = (name, value) => {
        model.set(name, value);
        model.save_changes();
      };
      stop = draw({ data: new Uint8Array(view.buffer, view.byteOffset, view.byteLength), parentElement: el, setTriggerValue });
    };
    model.on("change:data", show);
    show();
    return () => {
      model.off("change:data", show);
      stop?.();
    };
  },
};
