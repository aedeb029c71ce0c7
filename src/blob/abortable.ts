/** The result of `work`, or the signal's reason as soon as it is raised; nobody looks at `work` any more then. */
export async function abortable<T>(signal: AbortSignal, work: Promise<T>): Promise<T> {
  const end = Promise.withResolvers<never>();
  const stop = () => end.reject(signal.reason);
  if (signal.aborted) stop();
  else signal.addEventListener("abort", stop);
  try {
    return await Promise.race([work, end.promise]);
  } finally {
    signal.removeEventListener("abort", stop);
  }
}
