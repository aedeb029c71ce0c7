import { Ext4 } from "./ext4.ts";
import type { Volume } from "./volume.ts";

/**
 * Makes an empty ext4 file system (apply.md section 1: 4096-byte blocks, 256-byte inodes, no journal, no UUID, no times) on a
 * volume that reads as zeros. Writes only what is not zero; the same size always gives the same bytes.
 * @throws OverlaybdError E_LIMIT when the volume is too small or too large.
 */
export function mkfs(volume: Volume): void {
  Ext4.create(volume).commit();
}
