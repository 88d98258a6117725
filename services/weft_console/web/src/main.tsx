import { render } from "preact";
import { App } from "./app";
import "./styles/base.css";
import "./styles/parts.css";
import "./styles/graph.css";
import "./styles/panel.css";
import "./styles/features.css";
import "./styles/lab.css";
import "./styles/jobs.css";

render(<App />, document.getElementById("app")!);
