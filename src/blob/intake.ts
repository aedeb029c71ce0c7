/**
 * Takes in one range of an object as it arrives: its units go to the disk for as long as that takes them, else to memory,
 * and are announced. A disk that refuses them costs their persistence, never a read.
 */
import type { CacheStats } from "./blob.ts";
import type { Room } from "./budget.ts";
import type { Media } from "./media.ts";
import type { UnitStore } from "./store.ts";

export class Intake {
  /** Whether the disk takes the range; unknown until its first bytes are here. */
  #stored: boolean | undefined;
  #leave = false;

  /**
   * @param store null when nothing is to be written.
   * @param length bytes of the whole range, for which leave is taken at once: what does not fit as a whole would make room
   * for its end by giving up its beginning.
   */
  constructor(
    private readonly store: UnitStore | null,
    private readonly room: Room,
    private readonly media: Media,
    private readonly stats: CacheStats,
    private readonly length: number,
  ) {}

  /** Whole units from number `first` on. */
  async put(first: number, bytes: Uint8Array): Promise<void> {
    const stored = await this.#keep(first, bytes);
    const { unit } = this.media.view.valid;
    for (let i = 0; i * unit < bytes.length; i++) {
      this.media.announce(first + i, bytes.subarray(i * unit, (i + 1) * unit), stored);
    }
  }

  /** Nothing more comes. */
  end(): void {
    if (this.#leave) this.room.written(this.length);
    this.#leave = false;
  }

  async #keep(first: number, bytes: Uint8Array): Promise<boolean> {
    // Where readers read is changed once by a range: two that change it to and fro would leave them nothing.
    if (this.#stored !== undefined && (!this.#stored || this.media.inMemory)) return false;
    this.#stored = await this.#write(first, bytes);
    if (this.#stored) {
      this.media.toMedia();
    } else {
      this.stats.refused++;
      this.media.toMemory();
    }
    return this.#stored;
  }

  async #write(first: number, bytes: Uint8Array): Promise<boolean> {
    if (!this.store) return false;
    this.#leave ||= await this.room.take(this.length);
    if (!this.#leave) return false;
    try {
      await this.store.write(first, bytes);
      return true;
    } catch {
      this.room.refused();
      return false;
    }
  }
}
