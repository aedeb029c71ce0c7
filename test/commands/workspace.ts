/** A temporary folder in which tools are run and look for their files, and what is in the layers they leave there. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openFileBlob } from "../../src/blob/file.ts";
import { openWritableLayer } from "../../src/format/lsmt/pair.ts";
import { openBlobLayer } from "../../src/image/layer.ts";
import { FROM_SOURCE } from "../fixtures/program.ts";
import { readSectors } from "../lsmt/memory.ts";

export interface Result {
  code: number;
  out: string;
  err: string;
}

export const CREATED = "overlaybd-create has created files SUCCESSFULLY\n";
export const COMMITTED = "overlaybd-commit has committed files SUCCESSFULLY\n";
export const UUID = "00112233-4455-6677-8899-aabbccddeeff";
/** Keeps a tool from reading this machine's service config. */
export const SERVICE = ["--service_config_path", "service.json"] as const;

export class Workspace {
  readonly folder = mkdtempSync(join(tmpdir(), "overlaybd-tools-"));

  constructor() {
    writeFileSync(
      this.path("service.json"),
      JSON.stringify({ cacheConfig: { cacheDir: this.path("cache") } }),
    );
  }

  path = (name: string): string => join(this.folder, name);

  /** Runs a tool or command, from source, in the folder. */
  async run(...words: string[]): Promise<Result> {
    return this.feed(new Uint8Array(0), ...words);
  }

  /** The same with something to read from stdin. */
  async feed(stdin: Uint8Array, ...words: string[]): Promise<Result> {
    const child = Bun.spawn([...FROM_SOURCE, ...words], {
      cwd: this.folder,
      stdin,
      stdout: "pipe",
      stderr: "pipe",
    });
    const [out, err] = await Promise.all([child.stdout.text(), child.stderr.text()]);
    return { code: await child.exited, out, err };
  }

  /** Writes an image config of local layers and returns its name. */
  config(name: string, lowers: readonly string[], upper?: readonly string[]): string {
    const image = {
      repoBlobUrl: "",
      lowers: lowers.map((file) => ({ file })),
      upper: upper && { data: this.path(upper[0]), index: this.path(upper[1]) },
      resultFile: "",
    };
    writeFileSync(this.path(name), JSON.stringify(image));
    return name;
  }

  /** Creates a pair of 1 GiB with a few recognisable blocks: block b is full of b. Returns the names of its files. */
  async filledPair(name: string, blocks: readonly number[], ...options: string[]): Promise<string[]> {
    const files = [`${name}.data`, `${name}.index`];
    const { code, err } = await this.run("create", ...files, "1", ...options);
    if (code !== 0) throw new Error(err);
    const layer = openWritableLayer(this.path(files[0]), this.path(files[1]));
    for (const block of blocks) layer.write(block * 4096, new Uint8Array(4096).fill(block));
    layer.close();
    return files;
  }

  /** Opens a layer blob, calls `look` and closes it. */
  async withLayer<T>(
    name: string,
    look: (layer: Awaited<ReturnType<typeof openBlobLayer>>) => T | Promise<T>,
  ): Promise<T> {
    const blob = await openFileBlob(this.path(name));
    try {
      return await look(await openBlobLayer(blob));
    } finally {
      await blob.close();
    }
  }

  /** What `filledPair` wrote into these blocks; 0 where there is nothing. */
  async markersOf(name: string, blocks: readonly number[]): Promise<number[]> {
    return this.withLayer(name, async ({ content: { segments, source } }) => {
      const markers: number[] = [];
      for (const block of blocks) {
        markers.push((await readSectors(segments, [source], block * 8, block * 8 + 8))[4095]);
      }
      return markers;
    });
  }

  remove(): void {
    rmSync(this.folder, { recursive: true });
  }
}
