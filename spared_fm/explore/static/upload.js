// The dialog in which a picture is chosen to search by.

import { count, el } from "./dom.js";

const byId = (id) => document.getElementById(id);

/** `search(picture)` runs the search and resolves, or throws an Error with what to tell the reader. */
export function uploadDialog(search) {
  const dialog = byId("upload");
  const go = byId("upload-go");
  let chosen = null;

  const problem = (text) => {
    byId("upload-error").hidden = !text;
    byId("upload-error").textContent = text ?? "";
  };

  const choose = (file) => {
    problem(null);
    if (chosen) URL.revokeObjectURL(chosen.url);
    chosen = null;
    byId("upload-preview").hidden = true;
    byId("drop-said").textContent = "Choose a PNG or JPEG, or drop it here";
    if (!file) return;
    if (!["image/png", "image/jpeg"].includes(file.type)) {
      problem(`${file.name} is no PNG or JPEG picture.`);
      return;
    }
    chosen = { file, name: file.name, url: URL.createObjectURL(file) };
    byId("upload-preview").src = chosen.url;
    byId("upload-preview").hidden = false;
    byId("drop-said").textContent = `${file.name}, ${count(Math.max(1, Math.round(file.size / 1024)), "KiB").replace("KiBs", "KiB")}`;
  };

  const open = (file = null) => {
    if (file) choose(file);
    if (!dialog.open) dialog.showModal();
  };

  byId("open-upload").addEventListener("click", () => open());
  byId("upload-file").addEventListener("change", (event) => choose(event.target.files[0]));
  byId("upload-cancel").addEventListener("click", () => dialog.close());
  for (const place of [document.body, byId("drop")]) {
    place.addEventListener("dragover", (event) => event.preventDefault());
    place.addEventListener("drop", (event) => {
      event.preventDefault();
      event.stopPropagation();
      if (event.dataTransfer.files.length) open(event.dataTransfer.files[0]);
    });
  }
  dialog.querySelector("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    if (!chosen) {
      problem("Choose a picture first.");
      byId("upload-file").focus();
      return;
    }
    const spinner = el("span", { class: "spinner" });
    go.disabled = true;
    go.prepend(spinner);
    try {
      const mpp = byId("upload-mpp").value;
      await search({ ...chosen, url: URL.createObjectURL(chosen.file), mpp: mpp === "" ? null : Number(mpp) });
      problem(null);
      dialog.close();
    } catch (error) {
      problem(error.message);
    } finally {
      go.disabled = false;
      spinner.remove();
    }
  });
}
