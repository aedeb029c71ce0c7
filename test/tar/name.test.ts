import { describe, expect, test } from "bun:test";
import { posix } from "node:path";
import { cleanName, escapesRoot } from "../../src/format/tar/name.ts";
import { random } from "../fixtures/random.ts";

describe("cleaning a name", () => {
  const cases: [string, string][] = [
    ["a/b", "a/b"],
    ["./a//b/", "a/b"],
    ["a/./b/../c", "a/c"],
    [".", "."],
    ["./", "."],
    ["a/..", "."],
    ["", "."],
    ["/", "/"],
    ["//", "/"],
    ["/..", "/"],
    ["/../../a", "/a"],
    ["..", ".."],
    ["../a", "../a"],
    ["a/../../b", "../b"],
    ["..a", "..a"],
    ["a/...", "a/..."],
    [".wh.x", ".wh.x"],
  ];
  test.each(cases)("%j becomes %j", (name, cleaned) => expect(cleanName(name)).toBe(cleaned));

  test("agrees with node:path on random names, and is stable", () => {
    const next = random(7);
    const parts = ["a", "..", ".", "", "b", "..c", "/"];
    for (let i = 0; i < 5000; i++) {
      const name = Array.from({ length: next() * 7 }, () => parts[Math.floor(next() * parts.length)]).join(
        "/",
      );
      const expected = posix.normalize(name).replace(/(.)\/$/, "$1");
      expect(cleanName(name)).toBe(expected);
      expect(cleanName(cleanName(name))).toBe(expected);
    }
  });

  test("only leading dot-dots escape", () => {
    expect(["..", "../a"].map(escapesRoot)).toEqual([true, true]);
    expect(["..a", ".", "a", "/"].map(escapesRoot)).toEqual([false, false, false, false]);
  });
});
