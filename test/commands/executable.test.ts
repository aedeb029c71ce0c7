/** The one executable: that it runs alone, wherever it is put, whatever surrounds it. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import {
  copyFileSync,
  existsSync,
  linkSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { $ } from "bun";
import { EXECUTABLE } from "../fixtures/program.ts";

setDefaultTimeout(60_000);
/** Upstream's tools that this executable is when it is called so, and how their help begins. */
const TOOLS: readonly (readonly [string, string])[] = [
  ["overlaybd-create", "Usage: overlaybd-create "],
  ["overlaybd-apply", "Usage: overlaybd-apply "],
  ["overlaybd-commit", "Usage: overlaybd-commit "],
  ["overlaybd-merge", "Usage: overlaybd-merge "],
  ["overlaybd-zfile", "Usage: overlaybd-zfile "],
  ["convertor", "USAGE overlaybd convert "],
];
const VERSION = /^overlaybd \d+\.\d+\.\d+\n$/;
const isRoot = process.getuid?.() === 0;

describe.skipIf(EXECUTABLE === null)("the executable", () => {
  /** Not below /tmp, which some tests hide. */
  let folder: string;
  let program: string;
  beforeAll(() => {
    folder = mkdtempSync("/var/tmp/overlaybd-executable-");
    program = join(folder, "moved", "overlaybd");
    mkdirSync(join(folder, "moved"));
    copyFileSync(EXECUTABLE?.[0] ?? "", program);
  });
  afterAll(() => rmSync(folder, { recursive: true }));

  interface Surroundings {
    readonly cwd?: string;
    /** The whole environment. */
    readonly env?: Record<string, string>;
  }

  async function run(words: readonly string[], { cwd = folder, env = {} }: Surroundings = {}) {
    const child = Bun.spawn([...words], { cwd, env, stdin: "ignore", stdout: "pipe", stderr: "pipe" });
    const [out, err] = await Promise.all([child.stdout.text(), child.stderr.text()]);
    return { code: await child.exited, out, err };
  }

  /** A shell's redirections are all that a `Bun.spawn` cannot do. */
  const redirected = (redirection: string, words: readonly string[]) =>
    run(["/bin/sh", "-c", `exec "$0" "$@" ${redirection}`, program, ...words]);

  let count = 0;

  /** Does work that needs all of it: the shim, threads, files. The program is started by `words`. */
  async function works(words: readonly string[], surroundings: Surroundings = {}): Promise<void> {
    const work = join(folder, `work-${count++}`);
    mkdirSync(work);
    const path = (name: string) => join(work, name);
    const done = async (...more: string[]): Promise<string> => {
      const { code, out, err } = await run([...words, ...more], surroundings);
      expect({ code, err: err.trim() }).toEqual({ code: 0, err: "" });
      return out;
    };
    expect(await done("--version")).toMatch(VERSION);
    await done("create", path("data"), path("index"), "1", "--mkfs");
    await done("commit", "-zt", path("data"), path("index"), path("layer"));
    expect(await done("zfile", "--verify", path("layer"))).toContain("is a valid zfile blob");
    const [layer] = JSON.parse(await done("inspect", "--json", path("layer"))).layers;
    expect(layer).toMatchObject({ compression: "lz4", tar: true, virtualSize: 2 ** 30 });
    expect(readdirSync(work).sort()).toEqual(["data", "index", "layer"]);
    rmSync(work, { recursive: true });
  }

  test("is smaller than 130 MB", () => {
    expect(statSync(program).size).toBeLessThan(130e6);
  });

  test("needs no shared library but the C library's, and of that nothing newer than 2.34", async () => {
    const allowed = /^(linux-vdso|libc|libm|libdl|libpthread|ld-linux-x86-64|ld-linux-aarch64)\.so\.\d+$/;
    const shim = join(import.meta.dir, "../../build/shim.so");
    for (const file of [program, shim]) {
      const libraries = [...(await $`ldd ${file}`.text()).matchAll(/^\s*(\S+)/gm)].map(([, path]) =>
        path.replace(/^.*\//, ""),
      );
      expect(libraries).toContain("libc.so.6");
      expect(libraries.filter((name) => !allowed.test(name))).toEqual([]);
      const symbols = await $`objdump -T ${file}`.text();
      const versions = [...symbols.matchAll(/GLIBC_2\.(\d+)/g)].map(([, minor]) => Number(minor));
      expect(Math.max(...versions)).toBeLessThanOrEqual(34);
    }
  });

  test("runs in another folder, with an empty environment: no HOME, no PATH", () => works([program]));

  test("runs for nobody, who has no home and no right to write", async () => {
    const nobody = isRoot ? ["/usr/bin/setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] : [];
    await $`chmod 755 ${folder}`;
    const { code, out, err } = await run([...nobody, program, "--version"], { cwd: "/" });
    expect({ code, err }).toEqual({ code: 0, err: "" });
    expect(out).toMatch(VERSION);
  });

  for (const [state, option] of [
    ["read-only", "ro"],
    ["noexec", "noexec"],
    ["full", "size=4k"],
  ]) {
    test.skipIf(!isRoot)(`runs where /tmp is ${state} (needs root)`, async () => {
      const fill = state === "full" ? "; head -c 4096 /dev/zero > /tmp/full" : "";
      const mount = `mount -t tmpfs -o ${option} tmpfs /tmp${fill}`;
      const shell = ["/usr/bin/unshare", "-m", "/bin/sh", "-c", `${mount} && exec "$0" "$@"`];
      const probe = state === "noexec" ? "cp /bin/true /tmp && /tmp/true" : "echo x > /tmp/x";
      const refused = await run([...shell.slice(0, -1), `${mount} && ${probe}`]);
      expect(refused.code).not.toBe(0);
      await works([...shell, program], { env: { PATH: "/usr/bin:/bin" } });
    });
  }

  /** A folder full of what the runtime would read from it, all of which leaves a mark when it is. */
  function trap(name: string): { cwd: string; mark: string } {
    const cwd = join(folder, name);
    const mark = join(cwd, "mark");
    mkdirSync(join(cwd, "node_modules/consola"), { recursive: true });
    const code = `require("node:fs").writeFileSync(${JSON.stringify(mark)}, "here");`;
    for (const file of ["preload.ts", "preload.js", "node_modules/consola/index.js"]) {
      writeFileSync(join(cwd, file), code);
    }
    const main = { name: "consola", main: "index.js" };
    writeFileSync(join(cwd, "node_modules/consola/package.json"), JSON.stringify(main));
    writeFileSync(join(cwd, "package.json"), '{"name": "trap", "main": "preload.js", "type": "commonjs"}');
    writeFileSync(join(cwd, "tsconfig.json"), '{"compilerOptions": {"paths": {"*": ["./preload.ts"]}}}');
    const toml = 'preload = ["./preload.ts"]\n[run]\npreload = ["./preload.ts"]\n';
    for (const file of ["bunfig.toml", ".bunfig.toml"]) writeFileSync(join(cwd, file), toml);
    for (const file of [".env", ".env.local", ".env.production"]) {
      writeFileSync(join(cwd, file), "OVERLAYBD_PASSWORD=from-a-file\nBUN_OPTIONS=--preload=./preload.ts\n");
    }
    return { cwd, mark };
  }

  test("takes nothing from the directory it is started in", async () => {
    const { cwd, mark } = trap("cwd");
    await works([program], { cwd, env: { HOME: cwd, XDG_CONFIG_HOME: cwd } });
    const words = "convert -r localhost:1/none -i a -o b -u somebody".split(" ");
    const { code, err } = await run([program, ...words], { cwd });
    expect({ code, err }).toEqual({
      code: 2,
      err: expect.stringMatching(/needs .*OVERLAYBD_PASSWORD/),
    });
    expect(existsSync(mark)).toBe(false);
  });

  test("takes no orders from the environment", async () => {
    const { cwd, mark } = trap("environment");
    for (const library of ["libext2fs.so.2", "liblz4.so.1", "libzstd.so.1", "libcrypto.so.3", "shim.so"]) {
      writeFileSync(join(cwd, library), "not a library");
    }
    const env = {
      BUN_BE_BUN: "1",
      BUN_OPTIONS: "--preload=./preload.ts",
      BUN_PRELOAD: "./preload.ts",
      BUN_INSPECT_PRELOAD: join(cwd, "preload.ts"),
      BUN_RUNTIME_TRANSPILER_CACHE_PATH: cwd,
      NODE_OPTIONS: "--require ./preload.js --nonsense",
      NODE_PATH: join(cwd, "node_modules"),
      NODE_ENV: "production",
      LD_LIBRARY_PATH: cwd,
      TMPDIR: "/nonexistent",
      BUN_TMPDIR: "/nonexistent",
      LANG: "xx_XX.nonsense",
    };
    await works([program], { cwd, env });
    expect(existsSync(mark)).toBe(false);
  });

  test("opens no port for a debugger", async () => {
    const port = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { data() {} } });
    const free = port.port;
    port.stop(true);
    const child = Bun.spawn([program, "registry", join(folder, "layout"), "--listen", "127.0.0.1:0"], {
      env: { BUN_INSPECT: `ws://127.0.0.1:${free}/debugger` },
      stdout: "pipe",
      stderr: "ignore",
    });
    try {
      const { value } = await child.stdout.getReader().read();
      expect(new TextDecoder().decode(value)).toStartWith("serving ");
      const connecting = Bun.connect({ hostname: "127.0.0.1", port: free, socket: { data() {} } });
      expect(await connecting.catch((error) => error.code)).toBe("ECONNREFUSED");
    } finally {
      child.kill();
      await child.exited;
    }
  });

  test("runs with any of its standard descriptors closed, and none of its files becomes one of them", async () => {
    for (const [i, redirection] of ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"].entries()) {
      const files = ["data", "index"].map((name) => join(folder, `closed-${i}-${name}`));
      const { code, out, err } = await redirected(redirection, ["create", ...files, "1"]);
      expect({ code, err }).toEqual({ code: 0, err: "" });
      if (!redirection.includes(">&-") || redirection === "2>&-") expect(out).toContain("SUCCESSFULLY");
      expect(files.map((path) => statSync(path).size)).toEqual([4096, 4096]);
      expect(readFileSync(files[0], "latin1")).not.toContain("SUCCESSFULLY");
    }
    expect(await redirected("<&-", ["zfile", join(folder, "packed")])).toMatchObject({ code: 0 });
  });

  test("says in one line that stdout cannot be written", async () => {
    const input = join(folder, "input");
    const packed = join(folder, "packed-too");
    writeFileSync(input, "x".repeat(10_000));
    expect((await run([program, "zfile", input, packed])).code).toBe(0);
    for (const words of [
      ["--version"],
      ["--help"],
      ["convert", "--help"],
      ["create", "--help"],
      ["zfile", "--verify", packed],
    ]) {
      const { code, err } = await redirected("> /dev/full", words);
      const complaint = expect.stringMatching(/^overlaybd: writing to stdout failed: .+\n$/);
      expect({ words, code, err }).toEqual({ words, code: 1, err: complaint });
    }
    expect(await redirected("2> /dev/full", ["create"])).toMatchObject({ code: 106, out: "", err: "" });
  });

  test("does not mind a reader who has gone", async () => {
    const { code, out, err } = await run(["/bin/sh", "-c", '{ "$0" --help; echo $? >&2; } | true', program]);
    expect({ code, out, err }).toEqual({ code: 0, out: "", err: "0\n" });
  });

  for (const [name, start] of TOOLS) {
    test(`is ${name} when it is called so`, async () => {
      const links = join(folder, name);
      mkdirSync(join(links, "relative"), { recursive: true });
      mkdirSync(join(links, "absolute"));
      mkdirSync(join(links, "hard"));
      symlinkSync("../../moved/overlaybd", join(links, "relative", name));
      symlinkSync(program, join(links, "absolute", name));
      linkSync(program, join(links, "hard", name));
      for (const kind of ["relative", "absolute", "hard"]) {
        const calls = [
          [join(links, kind, name)],
          ["/usr/bin/env", `PATH=${join(links, kind)}`, name],
          ["/bin/sh", "-c", `cd ${join(links, kind)} && ./${name} "$@"`, "-"],
        ];
        for (const call of calls) {
          const { code, out, err } = await run([...call, "--help"]);
          expect({ code, err }).toEqual({ code: 0, err: "" });
          expect(out).toContain(start);
        }
      }
    });
  }

  test("touches nothing but its outputs, and no network", async () => {
    const trace = join(folder, "trace");
    const files = ["data", "index", "layer"].map((name) => join(folder, `traced-${name}`));
    const calls = [
      ["create", files[0], files[1], "1", "--mkfs"],
      ["commit", "-z", ...files],
      ["inspect", files[2]],
    ];
    for (const words of calls) {
      const strace = ["strace", "-f", "-qq", "-y", "-e", "trace=%file,%network", "-o", trace];
      const traced = await run([...strace, program, ...words], {
        env: { PATH: "/usr/bin:/bin", HOME: folder },
      });
      expect(traced.code).toBe(0);
      const lines = readFileSync(trace, "utf8").split("\n");
      expect(lines.filter((line) => /\b(socket|connect|bind|listen)\(/.test(line))).toEqual([]);
      const changing =
        /\b(open(at)?\(.*O_(WRONLY|RDWR|CREAT)|creat\(|mkdir|mknod|rename|(un)?link(at)?\(|symlink)/;
      const changes = lines.filter((line) => changing.test(line) && !/ = -1 E/.test(line));
      expect(changes.length > 0).toBe(words[0] !== "inspect");
      const foreign = changes.filter((line) => !files.some((file) => line.includes(`"${file}`)));
      expect(foreign.filter((line) => !/"\/dev\/(null|tty)"/.test(line))).toEqual([]);
    }
  });
});
