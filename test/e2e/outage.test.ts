/** A registry that is away for a while costs its readers that while, and nothing else. */
import { describe, expect, test } from "bun:test";
import { canServeFuse } from "../device/support.ts";
import { goThroughOutage } from "../fixtures/outage.ts";

// The outage of 60 s is test/bench/outage.ts.
describe.skipIf(!canServeFuse)(
  "reads of a mounted image wait, and go on within 2 s after the registry is back",
  () => {
    test.each([
      ["killed", 5],
      // Long enough for the connections to be given up as dead.
      ["silent", 8],
    ] as const)(
      "when it was %s",
      async (kind, seconds) => {
        const { failed, early, resumed } = await goThroughOutage(kind, seconds);
        expect({ failed, early }).toEqual({ failed: 0, early: 0 });
        expect(resumed).toBeLessThan(2000);
      },
      120_000,
    );
  },
);
