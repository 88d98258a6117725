import { useState } from "preact/hooks";
import { post, type ApiError } from "../api";
import { toApiError } from "../ui/load";
import { Problem } from "../ui/parts";

/** Asks for the console's token once; the backend keeps it as a cookie that scripts cannot read. */
export function SignIn(props: { onDone: () => void }) {
  const [token, setToken] = useState("");
  const [problem, setProblem] = useState<ApiError | null>(null);
  const submit = async (event: Event) => {
    event.preventDefault();
    try {
      await post("/api/session", { token });
      props.onDone();
    } catch (error) {
      setProblem(toApiError(error));
    }
  };
  return (
    <form class="sign-in card" onSubmit={(event) => void submit(event)}>
      <h1>Sign in</h1>
      <p class="note">Enter the console's token. <code>weft status</code> prints an address that holds it; on a server it is <code>WEFT_CONSOLE_TOKEN</code>.</p>
      <label class="field">
        <span>Token</span>
        <input type="password" autocomplete="current-password" required value={token} onInput={(event) => setToken(event.currentTarget.value)} />
      </label>
      {problem ? <Problem problem={problem} /> : null}
      <button type="submit" class="button primary">Sign in</button>
    </form>
  );
}
