// A button on each block of code. Of a console block it copies the commands, without prompts and output.
"use strict";

function commands(text) {
  const kept = [];
  let continued = false;
  for (const line of text.split("\n")) {
    if (continued || line.startsWith("$ ")) {
      kept.push(continued ? line : line.slice(2));
      continued = line.endsWith("\\");
    }
  }
  return kept.join("\n");
}

for (const block of document.querySelectorAll(".bd-article div.highlight")) {
  const text = block.querySelector("pre");
  if (!text || !navigator.clipboard) {
    continue;
  }
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy-block";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(commands(text.textContent) || text.textContent);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  block.append(button);
}
