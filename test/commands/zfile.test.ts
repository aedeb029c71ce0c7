import { expect, test } from "bun:test";
import { existsSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { golden, goldenDir } from "../golden/golden.ts";
import { sample, withFolder } from "../zfile/zfile.ts";

const main = join(import.meta.dir, "../../src/main.ts");

interface Outcome {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

async function zfile(words: readonly string[], stdin: Uint8Array = new Uint8Array(0)): Promise<Outcome> {
  const child = Bun.spawn([process.execPath, main, "zfile", ...words], {
    stdin,
    stdout: "pipe",
    stderr: "pipe",
  });
  const [stdout, stderr] = await Promise.all([child.stdout.text(), child.stderr.text()]);
  return { code: await child.exited, stdout, stderr };
}

const done: Outcome = { code: 0, stdout: "", stderr: "" };

test("compress, verify, extract: every combination of -t, --algorithm and --bs", async () => {
  await withFolder(async (folder) => {
    const [input, packed, output] = ["in", "packed", "out"].map((name) => join(folder, name));
    const plain = sample(300_001, 1);
    writeFileSync(input, plain);
    for (const options of [[], ["-t"], ["--algorithm", "zstd", "--bs=64"], ["-t", "--bs", "16"]]) {
      expect(await zfile(["-f", ...options, input, packed])).toEqual(done);
      const verified = await zfile(["--verify", packed]);
      expect(verified).toEqual({ ...done, stdout: `${packed} is a valid zfile blob.\n` });
      const tar = options.includes("-t") ? ["-t"] : [];
      expect(await zfile(["-x", "-f", ...tar, packed, output])).toEqual(done);
      expect(Buffer.compare(readFileSync(output), plain)).toBe(0);
      expect(statSync(output).mode & 0o777).toBe(0o700);
    }
  });
});

test.skipIf(goldenDir === null)("compressing gives upstream's file, from a file and from stdin", async () => {
  await withFolder(async (folder) => {
    const input = golden("inputs/pattern.bin");
    const packed = join(folder, "packed");
    expect(await zfile([input, packed])).toEqual(done);
    expect(readFileSync(packed).equals(readFileSync(golden("zfile/pattern.lz4.bs4")))).toBe(true);
    expect(await zfile(["-f", packed, "--algorithm=zstd", "--bs=32"], readFileSync(input))).toEqual(done);
    expect(readFileSync(packed).equals(readFileSync(golden("zfile/pattern.zstd.bs32")))).toBe(true);
    expect(await zfile(["-f", packed, "--algorithm", "gzip"], new Uint8Array(0))).toEqual(done);
    expect(readFileSync(packed).equals(readFileSync(golden("zfile/empty.lz4.bs4")))).toBe(true);
  });
});

test("failures end with 255, say why and leave no output", async () => {
  await withFolder(async (folder) => {
    const [input, packed, wrapped, output] = ["in", "packed", "wrapped", "out"].map((name) =>
      join(folder, name),
    );
    writeFileSync(input, sample(20_000, 2));
    expect(await zfile([input, packed])).toEqual(done);
    expect(await zfile(["-t", input, wrapped])).toEqual(done);

    const failures: readonly (readonly [string, readonly string[]])[] = [
      ["exists already", [input, packed]],
      ["--bs 5", ["--bs", "5", input, output]],
      ["--bs 128", ["--bs", "128", input, output]],
      ["does not exist", ["-x", join(folder, "absent"), output]],
      ["absent failed", [join(folder, "absent"), output]],
      ["needs both", ["-x", packed]],
      ["not a ZFile", ["-x", wrapped, output]],
      ["not a ZFile", ["-x", input, output]],
    ];
    for (const [message, words] of failures) {
      const { code, stderr } = await zfile(words);
      expect({ code, stderr }).toEqual({ code: 255, stderr: expect.stringContaining(message) });
      expect(existsSync(output)).toBe(false);
    }
    expect((await zfile([])).code).toBe(106);
    expect((await zfile(["--no-such-option", input])).code).toBe(109);
  });
});

test("--verify tells damage from other files", async () => {
  await withFolder(async (folder) => {
    const [input, packed] = ["in", "packed"].map((name) => join(folder, name));
    writeFileSync(input, sample(20_000, 3));
    await zfile(["-t", input, packed]);
    const bytes = readFileSync(packed);
    bytes[1536 + 512 + 50] ^= 1;
    writeFileSync(packed, bytes);
    const damaged = await zfile(["--verify", packed]);
    expect(damaged.code).toBe(255);
    expect(damaged.stdout).toBe(`${packed} is not a valid zfile blob or checksum can't be found.\n`);
    expect(damaged.stderr).toContain("block 0 at byte 512");
    const other = await zfile(["--verify", input]);
    expect(other.code).toBe(255);
    expect(other.stdout).toStartWith("format error! ");
  });
});

test("writes with mode 0644, from stdin into source_file, and only over an existing file with -f", async () => {
  await withFolder(async (folder) => {
    const [input, packed, output] = ["in", "packed", "out"].map((name) => join(folder, name));
    const plain = sample(50_000, 4);
    writeFileSync(input, plain);
    expect(await zfile([packed, "--verbose"], plain)).toEqual(done);
    expect(statSync(packed).mode & 0o777).toBe(0o644);
    expect(await zfile(["-x", packed, output])).toEqual(done);
    expect(readFileSync(output).equals(plain)).toBe(true);
    for (const words of [[packed], [input, packed], ["-x", packed, output]]) {
      const { code, stdout, stderr } = await zfile(words, plain);
      const complaint = expect.stringMatching(/^overlaybd-zfile: .+ exists already.*\n$/);
      expect({ code, stdout, stderr }).toEqual({ code: 255, stdout: "", stderr: complaint });
      expect(await zfile(["-f", ...words], plain)).toEqual(done);
    }
  });
});

test("an unknown algorithm means lz4, and one output is the other's", async () => {
  await withFolder(async (folder) => {
    const outputs: Buffer[] = [];
    for (const [i, options] of [[], ["--algorithm", "lz4"], ["--algorithm=brotli"], ["--bs=4"]].entries()) {
      const packed = join(folder, `packed-${i}`);
      expect(await zfile([...options, packed], sample(50_000, 5))).toEqual(done);
      outputs.push(readFileSync(packed));
    }
    for (const output of outputs) expect(output.equals(outputs[0])).toBe(true);
  });
});

test("--verify says in one line on stdout what it thinks, also of what is no file", async () => {
  await withFolder(async (folder) => {
    const empty = join(folder, "empty");
    writeFileSync(empty, "");
    const { code, stdout } = await zfile(["--verify", empty]);
    expect({ code, lines: stdout.split("\n").length }).toEqual({ code: 255, lines: 2 });
    const absent = await zfile(["--verify", join(folder, "absent")]);
    expect(absent).toMatchObject({ code: 255, stdout: "", stderr: expect.stringContaining("absent") });
  });
});
