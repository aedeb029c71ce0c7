/** Random stacks of layers against a model that is nothing but nested maps. */
import { expect, test } from "bun:test";
import { random } from "../fixtures/random.ts";
import { type Member, opaque, whiteout } from "../fixtures/tar.ts";
import { GIB, withDisk } from "./disk.ts";

interface Node {
  type: "file" | "dir" | "symlink";
  layer: number;
  data: { text: string };
  children: Map<string, Node>;
}

const folder = (layer: number): Node => ({ type: "dir", layer, data: { text: "" }, children: new Map() });

class Model {
  readonly root = folder(0);

  parent(path: string, layer: number): [Map<string, Node>, string] | null {
    const names = path.split("/");
    let at = this.root;
    for (const name of names.slice(0, -1)) {
      const child = at.children.get(name) ?? folder(layer);
      at.children.set(name, child);
      if (child.type !== "dir") return null;
      at = child;
    }
    return [at.children, names[names.length - 1]];
  }

  find(path: string): Node | undefined {
    let at: Node | undefined = this.root;
    for (const name of path.split("/")) at = at?.children.get(name);
    return at;
  }

  /** Takes away what is not of this layer; true when nothing is left. */
  hide(node: Node, layer: number): boolean {
    for (const [name, child] of node.children) {
      if (this.hide(child, layer) && child.layer !== layer) node.children.delete(name);
    }
    return node.children.size === 0;
  }

  list(node = this.root, prefix = ""): [string, string][] {
    return [...node.children].flatMap(([name, child]) => {
      const path = prefix + name;
      const what = child.type === "dir" ? "dir" : `${child.type} ${child.data.text}`;
      return [[path, what] as [string, string], ...this.list(child, `${path}/`)];
    });
  }
}

function randomLayer(model: Model, layer: number, next: () => number): Member[] {
  const pick = (n: number) => Math.floor(next() * n);
  const somePath = () =>
    Array.from({ length: 1 + pick(3) }, () => `n${pick(7)}${"-".repeat(pick(3) * 60)}`).join("/");
  const members: Member[] = [];
  for (let i = 0; i < 120; i++) {
    const path = somePath();
    const place = model.parent(path, layer);
    if (!place) continue;
    const [siblings, name] = place;
    const existing = siblings.get(name);
    const action = pick(10);
    const put = (node: Node) => siblings.set(name, node);
    if (action < 3) {
      const text = `${layer}.${i}`.repeat(1 + pick(3000));
      members.push({ path, data: text });
      put({ ...folder(layer), type: "file", data: { text } });
    } else if (action < 5) {
      members.push({ path: `${path}/` });
      if (existing?.type === "dir") existing.layer = layer;
      else put(folder(layer));
    } else if (action === 5) {
      // A target that no later path goes through.
      members.push({ path, type: "symlink", linkname: `/nowhere/${i}` });
      put({ ...folder(layer), type: "symlink", data: { text: `/nowhere/${i}` } });
    } else if (action === 6) {
      const linkname = somePath();
      const target = model.find(linkname);
      const within = linkname.startsWith(`${path}/`);
      if (!target || target.type === "dir" || within) {
        members.push(whiteout("never-there"));
        // The tree has got the path's parents all the same.
        members.push({ path, data: "" });
        put({ ...folder(layer), type: "file" });
      } else {
        members.push({ path, type: "hardlink", linkname });
        put({ ...target, layer, children: new Map() });
      }
    } else if (action < 9) {
      members.push(whiteout(path));
      if (existing && model.hide(existing, layer) && existing.layer !== layer) siblings.delete(name);
    } else {
      if (existing && existing.type !== "dir") continue;
      members.push(opaque(path));
      if (existing) model.hide(existing, layer);
      else put(folder(layer));
    }
  }
  return members;
}

for (const seed of [1, 2, 3, 4, 5, 6]) {
  test(`random layers, seed ${seed}`, () => {
    const next = random(seed);
    const model = new Model();
    withDisk(GIB, (disk) => {
      for (let layer = 1; layer <= 6; layer++) {
        disk.apply(randomLayer(model, layer, next));
        const found = [...disk.tree().values()]
          .filter(({ path }) => path !== ".")
          .map(({ path, type, target, sha256 }): [string, string] => [
            path,
            `${type} ${target ?? sha256 ?? ""}`.trim(),
          ]);
        const wanted = model.list().map(([path, what]): [string, string] => {
          if (!what.startsWith("file")) return [path, what];
          return [path, `file ${new Bun.CryptoHasher("sha256").update(what.slice(5)).digest("hex")}`];
        });
        expect(found.sort()).toEqual(wanted.sort());
      }
    });
  });
}
