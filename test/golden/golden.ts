/** The golden files: layers that upstream's own tools wrote. They live beside the checkout, not in it. */
import { existsSync } from "node:fs";
import { resolve } from "node:path";

const candidate = resolve(import.meta.dir, "../../../shared/golden");

/** Folder of the golden files, or null where they are absent; tests that need them then count as skipped. */
export const goldenDir: string | null = existsSync(candidate) ? candidate : null;
if (goldenDir === null)
  console.warn("golden files absent (../shared/golden): tests that read them are skipped");

/** Path of one golden file. Only call it where `goldenDir` is not null. */
export function golden(name: string): string {
  if (goldenDir === null) throw new Error(`golden file ${name} wanted, but ../shared/golden is absent`);
  return resolve(goldenDir, name);
}
