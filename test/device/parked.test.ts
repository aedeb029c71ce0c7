import { expect, test } from "bun:test";
import { ParkedReads } from "../../src/device/parked.ts";
import type { MissingRange } from "../../src/image/tables.ts";

const range = (offset: number): MissingRange => ({ layer: 1, offset, length: 4096 });

function lot() {
  const asked: [number, MissingRange][] = [];
  const parked = new ParkedReads<{ id: string }>((fetch, missing) => asked.push([fetch, missing]));
  return { parked, asked };
}

test("a range is asked for once, and everybody who waits for it goes on", () => {
  const { parked, asked } = lot();
  const [a, b] = [{ id: "a" }, { id: "b" }];
  parked.park(a, [range(0)]);
  parked.park(b, [range(0)]);
  expect(asked).toEqual([[1, range(0)]]);
  expect(parked.settle(1, false)).toEqual([
    { read: a, failed: false },
    { read: b, failed: false },
  ]);
  expect(parked.size).toBe(0);
});

test("a read waits for all of its ranges, and fails if one of them did", () => {
  const { parked } = lot();
  const read = { id: "a" };
  parked.park(read, [range(0), range(4096)]);
  expect(parked.settle(1, true)).toEqual([]);
  expect(parked.size).toBe(1);
  expect(parked.settle(2, false)).toEqual([{ read, failed: true }]);
});

test("a failure is not remembered: the range is asked for again", () => {
  const { parked, asked } = lot();
  parked.park({ id: "a" }, [range(0)]);
  parked.settle(1, true);
  parked.park({ id: "b" }, [range(0)]);
  expect(asked.map(([fetch]) => fetch)).toEqual([1, 2]);
});

test("a cancelled read is forgotten; others go on waiting", () => {
  const { parked } = lot();
  const [a, b] = [{ id: "a" }, { id: "b" }];
  parked.park(a, [range(0)]);
  parked.park(b, [range(0)]);
  expect(parked.cancel((read) => read.id === "a")).toBe(a);
  expect(parked.cancel((read) => read.id === "a")).toBeUndefined();
  expect(parked.settle(1, false)).toEqual([{ read: b, failed: false }]);
});

test("a settled number that nobody knows is ignored", () => {
  expect(lot().parked.settle(7, false)).toEqual([]);
});
