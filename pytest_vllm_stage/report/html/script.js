const query = document.getElementById("query"), outcome = document.getElementById("outcome");
const rows = [...document.querySelectorAll("#all-checks tbody tr")];
function filter() {
  const words = query.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !(words.every(word => text.includes(word)) && (!outcome.value || row.dataset.outcome === outcome.value));
    shown += !row.hidden;
  }
  document.getElementById("shown").textContent = shown + " shown";
}
query.addEventListener("input", filter);
outcome.addEventListener("change", filter);
const closed = [];
addEventListener("beforeprint", () => document.querySelectorAll("details:not([open])").forEach(one => { one.open = true; closed.push(one); }));
addEventListener("afterprint", () => closed.splice(0).forEach(one => { one.open = false; }));
