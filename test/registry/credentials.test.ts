/** Docker's configuration file and credential helpers. */
import { afterAll, afterEach, describe, expect, test } from "bun:test";
import { chmodSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { dockerCredentials } from "../../src/registry/credentials/docker.ts";
import { firstOf, fixedCredentials } from "../../src/registry/credentials/source.ts";
import { temporaryDirectory } from "../fixtures/registry.ts";

const directory = temporaryDirectory();
const path = join(directory.path, "config.json");
const searchPath = process.env.PATH;

afterEach(() => {
  process.env.PATH = searchPath;
});
afterAll(directory.remove);

function configured(config: unknown) {
  writeFileSync(path, typeof config === "string" ? config : JSON.stringify(config));
  return dockerCredentials(path);
}

/** Puts a credential helper into PATH. */
function helper(name: string, script: string): void {
  const program = join(directory.path, `docker-credential-${name}`);
  writeFileSync(program, `#!/bin/sh\n${script}\n`);
  chmodSync(program, 0o755);
  process.env.PATH = `${directory.path}:${searchPath}`;
}

describe("auths", () => {
  test("base64, split at the first colon; user and password; identity token", async () => {
    const source = configured({
      auths: {
        "a.example": { auth: btoa("user:pass:word") },
        "https://b.example:5000/v2/": { username: "u", password: "p" },
        "c.example": { auth: btoa("x:y"), identitytoken: "refresh" },
        "d.example": {},
      },
    });
    expect(await source("a.example", "app")).toEqual({ username: "user", password: "pass:word" });
    expect(await source("b.example:5000", "app")).toEqual({ username: "u", password: "p" });
    expect(await source("c.example", "app")).toEqual({ identityToken: "refresh" });
    expect(await source("d.example", "app")).toBeUndefined();
    expect(await source("e.example", "app")).toBeUndefined();
    expect(await source("b.example", "app")).toBeUndefined();
  });

  test("the longest path wins, and only whole parts match", async () => {
    const entry = (username: string) => ({ username, password: "p" });
    const source = configured({
      auths: {
        "a.example": entry("host"),
        "a.example/team": entry("team"),
        "a.example/team/app": entry("app"),
      },
    });
    for (const [repository, username] of [
      ["team/app", "app"],
      ["team/application", "team"],
      ["teams", "host"],
    ]) {
      expect(await source("a.example", repository)).toMatchObject({ username });
    }
    expect(await source("a.example.evil", "team/app")).toBeUndefined();
  });

  test("Docker Hub's is found for the host that serves it", async () => {
    const source = configured({ auths: { "https://index.docker.io/v1/": { auth: btoa("hub:pw") } } });
    expect(await source("registry-1.docker.io", "library/x")).toEqual({ username: "hub", password: "pw" });
  });

  test("changes are seen; a missing file is no credentials; a malformed one is an error that quotes nothing", async () => {
    const source = configured({ auths: { "a.example": { username: "old", password: "p" } } });
    expect(await source("a.example", "app")).toMatchObject({ username: "old" });
    configured({ auths: { "a.example": { username: "new", password: "p" } } });
    expect(await source("a.example", "app")).toMatchObject({ username: "new" });
    expect(await dockerCredentials(join(directory.path, "absent"))("a.example", "app")).toBeUndefined();
    const broken = configured('{"auths":{"a.example":{"auth":"c2VjcmV0"} ');
    const error = await broken("a.example", "app").catch((reason: unknown) => reason);
    expect(error).toMatchObject({ code: "E_CONFIG" });
    expect(Bun.inspect(error, { depth: 10 })).not.toContain("c2VjcmV0");
  });
});

describe("helpers", () => {
  test("credHelpers by host before credsStore", async () => {
    helper(
      "one",
      `read host; echo "{\\"ServerURL\\":\\"$host\\",\\"Username\\":\\"for-$host\\",\\"Secret\\":\\"s\\"}"`,
    );
    helper("two", `echo '{"Username":"<token>","Secret":"refresh"}'`);
    const source = configured({ credHelpers: { "a.example": "one" }, credsStore: "two" });
    expect(await source("a.example", "app")).toEqual({ username: "for-a.example", password: "s" });
    expect(await source("b.example", "app")).toEqual({ identityToken: "refresh" });
  });

  test("not found is anonymous; other failures and malformed answers are errors without secrets", async () => {
    const source = configured({ credsStore: "three" });
    helper("three", "echo credentials not found in native keychain; exit 1");
    expect(await source("a.example", "app")).toBeUndefined();
    helper("three", "echo s3cret is locked; exit 1");
    const locked = await source("a.example", "app").catch((reason: unknown) => reason);
    expect(locked).toMatchObject({ code: "E_AUTH" });
    helper("three", "echo s3cret");
    const malformed = await source("a.example", "app").catch((reason: unknown) => reason);
    expect(malformed).toMatchObject({ name: "OverlaybdError" });
    for (const error of [locked, malformed])
      expect(Bun.inspect(error, { depth: 10 })).not.toContain("s3cret");
  });

  test("names that are no helper's are refused", async () => {
    for (const name of ["../../bin/sh", "", "a b", 5]) {
      const asked = configured({ credHelpers: { "a.example": name } })("a.example", "app");
      await expect(asked).rejects.toMatchObject({ code: "E_CONFIG" });
    }
    const absent = configured({ credsStore: "nowhere-to-be-found" })("a.example", "app");
    await expect(absent).rejects.toThrow("PATH");
  });
});

test("fixed credentials and sources in order", async () => {
  expect(await fixedCredentials("a:b:c")("h", "r")).toEqual({ username: "a", password: "b:c" });
  for (const text of ["justuser", ":password", ""])
    expect(() => fixedCredentials(text)).toThrow("USER:PASSWORD");
  const none = async () => undefined;
  expect(await firstOf(none, fixedCredentials("x:y"), fixedCredentials("z:z"))("h", "r")).toMatchObject({
    username: "x",
  });
  expect(await firstOf(none)("h", "r")).toBeUndefined();
});
