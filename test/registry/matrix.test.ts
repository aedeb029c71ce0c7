/** Every cell of the fault matrix: right bytes or one clear error, in time, with few requests. */
import { beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { OverlaybdError } from "../../src/error.ts";
import { type Cell, faults, isMeaningful, type Outcome, phases, READ_DEADLINE, runMatrix } from "./matrix.ts";

setDefaultTimeout(120_000);

/** Milliseconds beyond the deadline that a loaded machine may need to notice. */
const SLACK = 4000;
/** With pauses of 50 ms doubled up to 1 s there is no room for more. */
const MOST_REQUESTS = 16;

let cells: Cell[];
beforeAll(async () => {
  cells = await runMatrix();
});

function expectClearError({ error, elapsed, requests }: Outcome, most: number): void {
  expect(error).toBeInstanceOf(OverlaybdError);
  const { message } = error as OverlaybdError;
  expect(message).toMatch(
    /(manifest \S+|blob sha256:[0-9a-f]{64} bytes \d+-\d+): (GET|HEAD) http:\/\/127\.0\.0\.1:\d+\//,
  );
  expect(message).toMatch(/\(attempt \d+\)$/);
  expect(Number(/attempt (\d+)/.exec(message)?.[1])).toBeLessThanOrEqual(MOST_REQUESTS);
  expect(elapsed).toBeLessThan(READ_DEADLINE + SLACK);
  expect(requests).toBeLessThanOrEqual(most);
  expect(Bun.inspect(error, { depth: 10 })).not.toMatch(/5ecret|pa55/);
}

describe.each(Object.keys(faults))("%s", (fault) => {
  test.each(Object.keys(phases).filter((phase) => isMeaningful(fault, phase)))("in phase %s", (phase) => {
    const cell = cells.find((one) => one.fault === fault && one.phase === phase) as Cell;
    expect(cell.passing).toMatchObject({ kind: "right" });
    const most = MOST_REQUESTS * (phases[phase].parallel ?? 1);
    expect(cell.passing.requests).toBeLessThanOrEqual(most);
    // Where the fault takes nothing away that matters, the bytes come.
    if (cell.lasting.kind === "right") expect(cell.lasting.elapsed).toBeLessThan(READ_DEADLINE);
    else expectClearError(cell.lasting, most);
  });
});
