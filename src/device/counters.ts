/** What a device has done so far: written by its worker, readable by any thread at any time. */
const FIELDS = ["reads", "readBytes", "writes", "writtenBytes", "misses", "errors"] as const;

export type Counter = (typeof FIELDS)[number];
export type DeviceStats = Readonly<Record<Counter, number>>;
/** One double for each counter, in shared memory; only one thread writes. */
export type CounterMemory = Float64Array<SharedArrayBuffer>;

export function createCounters(): CounterMemory {
  return new Float64Array(new SharedArrayBuffer(FIELDS.length * 8));
}

export const counterIndex = Object.fromEntries(FIELDS.map((name, i) => [name, i])) as Record<Counter, number>;

export function readCounters(memory: CounterMemory): DeviceStats {
  return Object.fromEntries(FIELDS.map((name, i) => [name, memory[i]])) as DeviceStats;
}
