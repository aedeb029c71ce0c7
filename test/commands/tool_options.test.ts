/** The option parser of the upstream-named tools (cli.md, common rules), and that every tool has all its options. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { Workspace } from "./workspace.ts";

setDefaultTimeout(60_000);
let files: Workspace;
beforeAll(() => {
  files = new Workspace();
  for (const name of ["a", "b"]) writeFileSync(files.path(name), "");
});
afterAll(() => files.remove());

const UPLOAD = [
  "--upload",
  "--upload_bs (default 262144)",
  "--cred_file_path",
  "--tls_key_path",
  "--tls_cert_path",
];

/** Every option of the tools, with its default where one is shown. */
const OPTIONS: Record<string, readonly string[]> = {
  create: ["-u", "-s", "--turboOCI,--fastoci", "--raw", "--mkfs", "--verbose"],
  commit: [
    ...[
      "-m",
      "--uuid",
      "-p,--parent-uuid",
      "-z",
      "-t",
      "-f",
      "--algorithm (default lz4)",
      "--bs (default 4)",
    ],
    ...["--turboOCI,--fastoci", "--seal", "--commit_sealed", "--compress_threads", ...UPLOAD, "--verbose"],
  ],
  apply: [
    ...[
      "--raw",
      "--mkfs",
      "--from_qcow2",
      "--extract-rootfs",
      "--no-extract-rootfs",
      "--service_config_path",
    ],
    ...["--gz_index_path", "--checksum", "--verbose"],
  ],
  zfile: ["-t", "-x", "--verify", "-f", "--algorithm (default lz4)", "--bs (default 4)", "--verbose"],
  merge: ["--compress", "-t", ...UPLOAD, "--service_config_path", "--verbose"],
};

const USAGE: Record<string, string> = {
  create: "overlaybd-create [OPTIONS] data_file index_file vsize",
  commit: "overlaybd-commit [OPTIONS] data_file [index_file] [commit_file]",
  apply: "overlaybd-apply [OPTIONS] input_path image_config_path",
  zfile: "overlaybd-zfile [OPTIONS] source_file [target_file]",
  merge: "overlaybd-merge [OPTIONS] image_config_path [output]",
};

for (const [tool, options] of Object.entries(OPTIONS)) {
  test(`${tool} --help shows its usage and every option`, async () => {
    const { code, out, err } = await files.run(tool, "--help");
    expect({ code, err }).toEqual({ code: 0, err: "" });
    expect(out).toContain(`Usage: ${USAGE[tool]}\n`);
    const lines = out.split("\n");
    for (const option of ["-h,--help", ...options]) {
      const [names, fallback = ""] = option.split(/ (?=\()/);
      const line = lines.find((line) => line.startsWith(`  ${names} `));
      expect({ option, line }).toEqual({ option, line: expect.stringContaining(fallback) });
    }
    expect(await files.run(tool, "--nonsense", "-h")).toEqual({ code, out, err });
  });

  test(`${tool} ends with 106 without arguments and with 109 for an unknown option`, async () => {
    const nothing = await files.run(tool);
    expect(nothing).toMatchObject({ code: 106, out: "" });
    expect(nothing.err).toMatch(/^\w+ is required\n/);
    const words = tool === "create" ? ["new", "new", "1"] : ["a", "b"];
    for (const unknown of ["--nonsense", "-Q", "--verbos", "--no-verbose"]) {
      const { code, out, err } = await files.run(tool, ...words, unknown);
      expect({ unknown, code, out }).toEqual({ unknown, code: 109, out: "" });
      expect(err).toContain(unknown);
    }
    const extra = await files.run(tool, ...words, "c", "d");
    expect(extra).toMatchObject({ code: 109, out: "", err: expect.stringContaining("d") });
  });
}

describe("the parser ends with", () => {
  for (const [code, words, complaint] of [
    [104, ["create", "x", "y", "1.5"], "1.5"],
    [104, ["create", "x", "y", "99999999999999999999"], "99999999999999999999"],
    [104, ["create", "x", "y", "1", "--raw=perhaps"], "perhaps"],
    [104, ["commit", "a", "--bs", "0.5"], "0.5"],
    [105, ["create", "x", "y", "one"], "one"],
    [105, ["create", "x", "y", "-1"], "-1"],
    [105, ["create", "x", "y", "--", "-1"], "-1"],
    [105, ["create", "x", "y", ""], "vsize"],
    [105, ["commit", "absent", "b", "c"], "File does not exist: absent"],
    [105, ["commit", "."], "actually a directory"],
    [105, ["commit", "absent", "--help"], "File does not exist: absent"],
    [105, ["merge", "absent"], "File does not exist: absent"],
    [105, ["apply", "absent"], "File does not exist: absent"],
    [106, ["create", "x", "y"], "vsize is required"],
    [106, ["create", "--nonsense"], "data_file is required"],
    [106, ["apply", "a"], "image_config_path is required"],
    [114, ["create", "x", "y", "1", "-u"], "-u"],
    [114, ["commit", "a", "--bs", "4", "--bs", "8"], "--bs"],
    [114, ["zfile", "a", "--algorithm"], "--algorithm"],
  ] as const) {
    test(`${code} for ${JSON.stringify(words)}`, async () => {
      const result = await files.run(...words);
      expect(result).toEqual({ code, out: "", err: expect.stringContaining(complaint) });
      expect(result.err.trim().split("\n")).toEqual([
        expect.any(String),
        "Run with --help for more information.",
      ]);
    });
  }
});
