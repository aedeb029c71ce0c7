/** A registry that is away for a while costs its readers that while, and nothing else. */
import { expect, test } from "bun:test";
import { canServeFuse } from "../device/support.ts";
import { goThroughOutage } from "../fixtures/outage.ts";

// The outage of 60 s is test/bench/outage.ts.
test.skipIf(!canServeFuse)(
  "reads of a mounted image wait while the registry is down, and go on within 2 s after it is back",
  async () => {
    const { failed, early, resumed } = await goThroughOutage(5);
    expect({ failed, early }).toEqual({ failed: 0, early: 0 });
    expect(resumed).toBeLessThan(2000);
  },
  120_000,
);
