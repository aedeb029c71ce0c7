/**
 * The direction of imports: a folder of src/ imports only from the folders below it in this list (and itself). Only
 * native/ touches bun:ffi, and it imports nothing of ours.
 */
import { relative, resolve } from "node:path";
import { Glob } from "bun";

const root = resolve(import.meta.dir, "../..");

/** Top first. Folders on one line may not import each other unless `siblings` says so. */
const order: readonly (readonly string[])[] = [
  ["commands"],
  ["snapshotter", "convert"],
  ["device"],
  ["image", "filesystem"],
  ["blob", "registry"],
  ["containerd", "service"],
  ["format"],
  ["native"],
];

const rank = new Map(order.flatMap((folders, i) => folders.map((folder) => [folder, i] as const)));

/** Returns one line per import that points the wrong way. */
export async function wrongImports(): Promise<string[]> {
  const problems: string[] = [];
  for await (const file of new Glob("src/**/*.ts").scan(root)) {
    const text = await Bun.file(resolve(root, file)).text();
    const [folder] = relative("src", file).split("/");
    for (const [, target] of text.matchAll(/(?:from|import)\s*\(?\s*"([^"]+)"/g)) {
      const problem = check(file, folder as string, target as string);
      if (problem) problems.push(`${file} imports ${target}: ${problem}`);
    }
  }
  return problems;
}

function check(file: string, folder: string, target: string): string | undefined {
  if (target === "bun:ffi") return folder === "native" ? undefined : "only native/ may";
  if (!target.startsWith(".")) return undefined;
  // Files directly in src/ may import anything: they are the entry, or what every folder stands on.
  if (!file.slice("src/".length).includes("/")) return undefined;
  const path = relative(resolve(root, "src"), resolve(root, file, "..", target));
  if (path.startsWith("..")) return folder === "native" ? undefined : "outside src/";
  const [other] = path.split("/") as [string];
  if (other === folder) return undefined;
  if (!path.includes("/")) return folder === "native" ? "native/ imports nothing of ours" : undefined;
  const from = rank.get(folder);
  const to = rank.get(other);
  if (from === undefined || to === undefined)
    return `${from === undefined ? folder : other} has no place in the order`;
  return to > from ? undefined : `${other}/ is not below ${folder}/`;
}

if (import.meta.main) {
  const problems = await wrongImports();
  for (const problem of problems) console.error(problem);
  process.exitCode = problems.length > 0 ? 1 : 0;
}
