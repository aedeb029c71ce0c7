import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Worker } from "node:worker_threads";
import { $ } from "bun";
import { FileCache } from "../../src/blob/cache.ts";
import { assemble, openLayers } from "../../src/image/open.ts";
import { MemoryOrigin } from "../blob/origin.ts";
import { random } from "../fixtures/random.ts";
import type { RacingMessage, RacingReader } from "./racing_reader.ts";
import { writeRandomLayer } from "./stack.ts";

const mayMount = process.getuid?.() === 0;
if (!mayMount) console.warn("not root: the test with a tiny tmpfs as cache directory is skipped");

let directory: string;
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), "overlaybd-displaced-"));
});
afterAll(() => rmSync(directory, { recursive: true, force: true }));

test.skipIf(!mayMount)(
  "a worker reads right bytes while they are displaced from a full disk's stand-in under its feet",
  async () => {
    const model = new Uint8Array(new SharedArrayBuffer(56 << 20));
    const path = join(directory, "layer");
    // Neither compressed nor checked: wrong bytes would go through.
    writeRandomLayer(path, model, 31, {});
    const tiny = join(directory, "tiny");
    mkdirSync(tiny);
    await $`mount -t tmpfs -o size=1m tmpfs ${tiny}`.quiet();
    try {
      const cache = new FileCache(tiny, { memory: 32 << 20 });
      const origin = new MemoryOrigin(readFileSync(path));
      const [layer] = await openLayers([() => cache.open(`sha256:${"1".repeat(64)}`, origin)]);
      const image = assemble([layer]);
      const answers = new Int32Array(new SharedArrayBuffer(4));
      const workerData: RacingReader = { tables: image.tables, model, answers, reads: 800 };
      const worker = new Worker(new URL("./racing_reader.ts", import.meta.url).pathname, { workerData });
      const end = Promise.withResolvers<string | null>();
      worker.on("error", end.reject);
      worker.on("message", async (message: RacingMessage) => {
        if ("wrong" in message) return end.resolve(message.wrong);
        await Promise.allSettled(message.missing.map((range) => image.fetch(range)));
        Atomics.add(answers, 0, 1);
        Atomics.notify(answers, 0);
      });
      // Others use the same cache and push out what the worker has just been given.
      const next = random(22);
      let running = true;
      const others = (async () => {
        while (running) await layer.blob.fetch(Math.floor(next() * (origin.size - (1 << 20))), 1 << 20);
      })();
      expect(await end.promise).toBeNull();
      running = false;
      await others;
      const { epoch } = layer.blob.view.valid ?? { epoch: new Uint32Array(1) };
      expect(Atomics.load(epoch, 0)).toBeGreaterThan(1000);
      await worker.terminate();
      await image.close();
    } finally {
      await $`umount -l ${tiny}`.quiet();
    }
  },
  60_000,
);
