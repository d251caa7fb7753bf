// Hands the form in, shows that it is being looked at, and moves the focus to the answer.
let waiting = null;

element.addEventListener("submit", (event) => {
  event.preventDefault();
  if (waiting) return;
  const form = event.target;
  const fields = Object.fromEntries(new FormData(form));
  fields.chat_template = form.elements.chat_template.checked;
  if (fields.weight_type === "Original") fields.base_model = ""; // it is not to be seen
  const button = form.querySelector("button[type=submit]");
  const words = button.textContent;
  button.textContent = button.dataset.busy;
  button.setAttribute("aria-disabled", "true");
  const done = () => {
    clearTimeout(waiting);
    waiting = null;
    button.textContent = words;
    button.removeAttribute("aria-disabled");
  };
  waiting = setTimeout(done, 120000); // without an answer, try again
  element.answered = done;
  trigger("submit", fields);
});

watch("value", () => {
  if (!waiting) return;
  element.answered();
  const target = element.querySelector(".accepted, .whole, [aria-invalid=true]");
  if (target) target.focus();
});
