// Puts the address of this server into the code samples, and makes their copy buttons work.

const copied = document.getElementById("copied");

/** Copies a text. Pages without HTTPS have no clipboard API; there the text is selected and copied by a command. */
async function copy(text) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const area = document.createElement("textarea");
  area.className = "visually-hidden";
  area.value = text;
  document.body.append(area);
  area.select();
  const isCopied = document.execCommand("copy");
  area.remove();
  if (!isCopied) throw new Error("not copied");
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
