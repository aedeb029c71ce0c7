/** Prints `N passed, N failed, N skipped` from a JUnit report, as the last line of a test run. */
import { file } from "bun";

const path = process.argv[2] ?? "";
const report = (await file(path).exists()) ? await file(path).text() : "";
const root = report.match(/<testsuites[^>]*>/)?.[0] ?? "";
const count = (name: string) => Number(root.match(new RegExp(`\\b${name}="(\\d+)"`))?.[1] ?? 0);
const failed = count("failures") + count("errors");
const skipped = count("skipped");
console.log(`${count("tests") - failed - skipped} passed, ${failed} failed, ${skipped} skipped`);
if (root === "") {
  console.error(`no JUnit report at ${path}: the test runner ended before it could write one`);
  process.exitCode = 1;
}
