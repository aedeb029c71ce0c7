/** When a way to a registry's content is taken, and when it is left alone. */
import { afterEach, beforeEach, expect, mock, spyOn, test } from "bun:test";
import { Health } from "../../src/registry/health.ts";

let now: number;
beforeEach(() => {
  now = 1000;
  spyOn(performance, "now").mockImplementation(() => now);
});
afterEach(() => mock.restore());

test("rests after a failure, longer after each that follows, never more than five minutes", () => {
  const health = new Health();
  expect(health.admit()).toBe(true);
  const rests: (number | undefined)[] = [];
  for (let failure = 0; failure < 9; failure++) {
    const rest = health.failed();
    rests.push(rest);
    now += (rest ?? 0) - 1;
    expect(health.admit()).toBe(false);
    now += 1;
    expect(health.admit()).toBe(true);
  }
  expect(rests.map((rest) => (rest ?? 0) / 1000)).toEqual([5, 10, 20, 40, 80, 160, 300, 300, 300]);
  health.succeeded();
  expect(health.failed()).toBe(5000);
});

test("after a rest one request finds out, the others go on avoiding it", () => {
  const health = new Health();
  health.failed();
  expect(health.failed()).toBeUndefined();
  now += 5000;
  expect([health.admit(), health.admit(), health.admit()]).toEqual([true, false, false]);
  expect(health.failed()).toBe(10_000);
  now += 10_000;
  expect([health.admit(), health.admit()]).toEqual([true, false]);
  health.abandoned();
  expect([health.admit(), health.admit()]).toEqual([true, false]);
  health.succeeded();
  expect([health.admit(), health.admit()]).toEqual([true, true]);
});

test("is dialled once, and again after a failure", async () => {
  let dialled = 0;
  const health = new Health(async () => {
    dialled++;
  });
  await Promise.all([health.reach(), health.reach()]);
  await health.reach();
  expect(dialled).toBe(1);
  health.failed();
  health.failed();
  await health.reach();
  expect(dialled).toBe(2);
});
