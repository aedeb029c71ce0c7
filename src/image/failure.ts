/** Saying what went wrong when a plan failed: which blob, which block, where. */
import { OverlaybdError } from "../error.ts";
import { type BlockTable, blockOffset, CHECKSUM_BYTES } from "../format/zfile/blocks.ts";
import { SystemError } from "../native/errno.ts";
import type { Plan, PlanError } from "../native/plan.ts";
import type { DiskLayer, DiskTables, MissingRange } from "./tables.ts";

/**
 * The bytes of a cache that made a plan fail, whatever it was: they are wrong, or the disk does not give them back. Null
 * when the plan failed for another reason.
 */
export function damagedRange(
  failure: PlanError,
  plan: Plan,
  { layers }: Pick<DiskTables, "layers">,
): MissingRange | null {
  const { fd, offset, length } = locate(plan, failure.step);
  const layer = layers.findIndex(({ blob }) => blob.fd === fd);
  const valid = layers[layer]?.blob.valid;
  return valid ? { layer, offset, length, damaged: Atomics.load(valid.epoch, 0) } : null;
}

/** The error that readers get for a failed plan. E_CORRUPT for damaged bytes, E_IO when the system would not read. */
export function explain(
  failure: PlanError,
  plan: Plan,
  { layers, upper }: Pick<DiskTables, "layers" | "upper">,
): OverlaybdError {
  const place = locate(plan, failure.step);
  const layer = layers.find(({ blob }) => blob.fd === place.fd);
  const name = layer?.blob.name ?? upper?.data ?? "the disk";
  if (failure.cause === "system") {
    const why = new SystemError(failure.errno, "pread").message;
    return new OverlaybdError("E_IO", `${name}: cannot read at byte ${place.offset}: ${why}`, {
      cause: failure,
    });
  }
  if (failure.cause === "short") {
    const what = `the file ends before byte ${place.offset + place.length}, it has been truncated`;
    return new OverlaybdError("E_CORRUPT", `${name}: ${what}`, { cause: failure });
  }
  const block = layer?.blocks ? blockAt(layer, layer.blocks, place.offset) : 0;
  const what =
    failure.cause === "checksum" ? "its checksum does not match" : "it does not decompress to its size";
  return new OverlaybdError(
    "E_CORRUPT",
    `${name}: block ${block} at byte ${place.offset} is damaged: ${what}`,
    {
      cause: failure,
    },
  );
}

/** The file bytes that a step is about; for a block those that were fetched for it. */
function locate(plan: Plan, failed: number): { fd: number; offset: number; length: number } {
  const step = plan.step(failed);
  if (step.kind === "copy" || step.kind === "fetch") return step;
  if (step.kind === "block") {
    for (let i = failed - 1; i >= 0; i--) {
      const earlier = plan.step(i);
      if (earlier.kind !== "fetch") continue;
      const inside = step.scratch - earlier.scratch;
      if (inside < 0 || inside >= earlier.length) continue;
      const length = step.storedLength + (step.checksum ? CHECKSUM_BYTES : 0);
      return { fd: earlier.fd, offset: earlier.offset + inside, length };
    }
  }
  return { fd: -1, offset: 0, length: 0 };
}

/** Number of the block that is stored at byte `offset` of the blob. */
function blockAt(layer: DiskLayer, table: BlockTable, offset: number): number {
  let low = 0;
  let high = table.count - 1;
  while (low < high) {
    const middle = Math.floor((low + high) / 2);
    if (layer.start + blockOffset(table, middle + 1) <= offset) low = middle + 1;
    else high = middle;
  }
  return low;
}
