// Opens report pages in Chromium: requests, accessibility (axe), overflow, search, and pictures. See bench_browser_report.py.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [modules, chromium, out, ...files] = process.argv.slice(2);
const require = createRequire(pathToFileURL(modules + "/"));
const { chromium: launcher } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const browser = await launcher.launch({ executablePath: chromium, args: ["--no-sandbox", "--disable-gpu"] });
const results = [];
for (const file of files) {
  const url = pathToFileURL(file).href;
  for (const width of [1280, 390]) {
    for (const colorScheme of ["light", "dark"]) {
      // axe is put into the page, which the page's own policy forbids, and rightly.
      const context = await browser.newContext({ viewport: { width, height: 900 }, colorScheme, bypassCSP: true });
      const page = await context.newPage();
      const requests = [], errors = [];
      page.on("request", request => { if (request.url() !== url && !request.url().startsWith("data:")) requests.push(request.url()); });
      page.on("pageerror", error => errors.push(String(error)));
      page.on("dialog", dialog => { errors.push("dialog: " + dialog.message()); dialog.dismiss(); });
      await page.goto(url, { waitUntil: "load" });
      await page.screenshot({ path: `${out}/${results.length}-${width}-${colorScheme}.png`, fullPage: true });
      await page.evaluate(() => document.querySelectorAll("details").forEach(one => { one.open = true; }));
      await page.evaluate(axe);
      const found = await page.evaluate(() => axe.run());
      const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      const search = await page.evaluate(() => {
        const query = document.getElementById("query");
        if (!query) return null;
        query.value = "no check has this name";
        query.dispatchEvent(new Event("input"));
        return [...document.querySelectorAll("#all-checks tbody tr")].filter(row => !row.hidden).length;
      });
      const violations = found.violations.map(one => ({ id: one.id, impact: one.impact, nodes: one.nodes.length, example: one.nodes[0].html.slice(0, 160) }));
      results.push({ file, width, colorScheme, requests, errors, overflow, search, violations, passes: found.passes.length });
      await context.close();
    }
  }
}
await browser.close();
console.log(JSON.stringify(results));
