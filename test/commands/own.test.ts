/** What all our own commands have in common: help, wrong usage in one line with exit code 2, results as JSON. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { gzipLayer, HandmadeLayout } from "../fixtures/layout.ts";
import { tar } from "../fixtures/tar.ts";
import { Workspace } from "./workspace.ts";

setDefaultTimeout(60_000);
let files: Workspace;
beforeAll(() => {
  files = new Workspace();
});
afterAll(() => files.remove());

/** Enough words to be complete, none of which is there. */
const COMMANDS: Record<string, readonly string[]> = {
  convert: ["-r", "oci:absent", "-i", "latest", "-o", "converted"],
  mount: ["absent", "nowhere"],
  umount: ["nowhere"],
  inspect: ["absent"],
  export: ["absent", "out"],
  registry: ["layout"],
};

/** Exit code 2, nothing on stdout, one line that says what is wrong. */
async function isWrong(words: readonly string[], complaint: string | RegExp): Promise<void> {
  const { code, out, err } = await files.run(...words);
  expect({ words, code, out, err }).toEqual({
    words,
    code: 2,
    out: "",
    err: expect.stringMatching(complaint),
  });
  expect(err.trim().split("\n")).toHaveLength(1);
}

for (const [command, words] of Object.entries(COMMANDS)) {
  describe(command, () => {
    test("--help and -h print the same to stdout, whatever else there is", async () => {
      const help = await files.run(command, "--help");
      expect(help).toMatchObject({ code: 0, err: "" });
      expect(help.out).toContain(`USAGE overlaybd ${command} `);
      expect(help.out).toContain("--help");
      expect(await files.run(command, "--nonsense", "-h", ...words)).toEqual(help);
    });

    test("takes no word it does not know", async () => {
      await isWrong(
        [command, ...words, "--nonsense"],
        `no option --nonsense; see "overlaybd ${command} --help"`,
      );
      await isWrong([command, ...words, "-Q"], "no option -Q");
      await isWrong([command, ...words, "superfluous"], /one word too many: "superfluous"/);
    });

    test("says what is missing", () => isWrong([command], / is (missing|required)/));
  });
}

test("options of a kind are checked alike", async () => {
  await isWrong(["convert", ...COMMANDS.convert, "--oci=perhaps"], "--oci=perhaps is neither true nor false");
  await isWrong(["convert", ...COMMANDS.convert, "--vsize"], "--vsize needs a value");
  await isWrong(["convert", ...COMMANDS.convert, "--vsize", "--oci"], "--vsize needs a value");
  await isWrong(["convert", ...COMMANDS.convert, "--vsize", "0"], "--vsize");
  await isWrong(["convert", "-r", "oci:absent", "-i", "latest"], "output-tag is required");
  await isWrong(["convert", "-r", "oci:absent", "-o", "converted"], "input-tag");
  await isWrong(["mount", ...COMMANDS.mount, "--rw"], "--rw needs --upper");
  await isWrong(["registry", "layout", "--listen", "nowhere"], "--listen");
  await isWrong(["registry", "layout", "--tls-cert", "x.pem"], "--tls-cert and --tls-key");
  await isWrong(["inspect", "absent", "--json=perhaps"], "--json=perhaps");
});

test("what is not there is a failure, not wrong usage", async () => {
  for (const command of ["convert", "mount", "umount", "inspect", "export"]) {
    const { code, out, err } = await files.run(command, ...COMMANDS[command]);
    expect({ command, code, out }).toEqual({ command, code: 1, out: "" });
    expect(err).toStartWith(`overlaybd ${command}: `);
    expect(err.trim().split("\n")).toHaveLength(1);
  }
});

test("no command or an unknown one is wrong usage", async () => {
  const { out, ...help } = await files.run("--help");
  expect(help).toEqual({ code: 0, err: "" });
  for (const name of [...Object.keys(COMMANDS), "create", "apply", "commit", "merge", "zfile"]) {
    expect(out).toMatch(new RegExp(`^ +${name} `, "m"));
  }
  expect(await files.run("-h")).toEqual({ ...help, out });
  expect(await files.run()).toEqual({ code: 2, out: "", err: out });
  await isWrong(["nonsense"], 'unknown command "nonsense"');
  await isWrong(["--nonsense"], 'unknown command "--nonsense"');
  await isWrong(["constructor"], 'unknown command "constructor"');
  const version = await files.run("--version");
  expect(version).toEqual({ code: 0, out: expect.stringMatching(/^overlaybd \d+\.\d+\.\d+\n$/), err: "" });
  expect(await files.run("-V")).toEqual(version);
});

test("convert and inspect print JSON that says what was made", async () => {
  const layout = new HandmadeLayout(files.path("layout"));
  const layer = gzipLayer(tar([{ path: "file", data: "content" }]));
  layout.tag(layout.image({ layers: [layer] }));
  const words = ["-r", "oci:layout", "-i", "latest", "-o", "converted", "--vsize", "1", "--oci"];
  const converted = await files.run("convert", ...words, "--json");
  expect(converted).toMatchObject({ code: 0, err: "" });
  const { digest } = JSON.parse(converted.out);
  expect(digest).toMatch(/^sha256:[0-9a-f]{64}$/);
  const text = await files.run("convert", ...words);
  expect(text).toEqual({ code: 0, out: expect.stringContaining(`digest: "${digest}"`), err: "" });
  const inspected = await files.run("inspect", "oci:layout:converted", "--json");
  expect(inspected).toMatchObject({ code: 0, err: "" });
  expect(JSON.parse(inspected.out)).toMatchObject({
    virtualSize: 2 ** 30,
    layers: [{ compression: "lz4", tar: true }],
  });
});
