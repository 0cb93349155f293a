// Puts the address of this server into the samples, and copies them.

const copied = document.getElementById("copied");

/** Without https a browser has no clipboard for scripts; then the text is selected and copied as by hand. */
async function copy(text) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const area = document.createElement("textarea");
  area.className = "unseen";
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (!done) throw new Error("not copied");
}

for (const origin of document.querySelectorAll(".origin")) origin.textContent = location.origin;

for (const button of document.querySelectorAll("button.copy")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const text = button.closest(".sample").querySelector("code").textContent;
    button.textContent = await copy(text).then(() => "Copied", () => "Not copied");
    copied.textContent = button.textContent;
    setTimeout(() => {
      button.textContent = "Copy";
      copied.textContent = "";
    }, 2000);
  });
}
