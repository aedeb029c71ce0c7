/** Refill units that somebody works on, and what those who want them wait for. */
export class Flights {
  readonly #flights = new Map<number, Promise<unknown>>();

  /** What is under way for the unit, if anything is. */
  get(unit: number): Promise<unknown> | undefined {
    return this.#flights.get(unit);
  }

  has(unit: number): boolean {
    return this.#flights.has(unit);
  }

  /** The units are on their way until all of `work` is done. */
  together<T>(units: readonly number[], work: Promise<T>): Promise<T> {
    const flight = work.finally(() => {
      for (const unit of units) this.#flights.delete(unit);
    });
    for (const unit of units) this.#flights.set(unit, flight);
    return flight;
  }

  /**
   * Each of the units is on its way until `work` says that it has landed, which it does of all of them unless it fails.
   * @returns what to wait for, by unit.
   */
  oneByOne(
    units: readonly number[],
    work: (landed: (unit: number) => void) => Promise<void>,
  ): Promise<void>[] {
    const flights = new Map(units.map((unit) => [unit, Promise.withResolvers<void>()]));
    const waits = [...flights.values()].map(({ promise }) => promise);
    for (const [unit, { promise }] of flights) this.#flights.set(unit, promise);
    const end = (unit: number) => {
      const flight = flights.get(unit);
      flights.delete(unit);
      this.#flights.delete(unit);
      return flight;
    };
    work((unit) => end(unit)?.resolve()).catch((error) => {
      for (const unit of [...flights.keys()]) end(unit)?.reject(error);
    });
    return waits;
  }

  /** Waits for all that is under way now, whatever becomes of it. */
  async settle(): Promise<void> {
    await Promise.allSettled(this.#flights.values());
  }
}
