{{/*
The NetworkPolicy of a component, for both directions. Takes root, component, callers and peers (components that call it
and that it calls), and hasBucket. Nothing else passes but what the values add.
*/}}
{{- define "weft.networkPolicy" -}}
{{- $policy := .root.Values.networkPolicy }}
{{- if $policy.enabled }}
{{- $root := .root }}
{{- $component := .component }}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  {{- include "weft.metadata" . | nindent 2 }}
spec:
  podSelector:
    matchLabels:
      {{- include "weft.selectorLabels" . | nindent 6 }}
  policyTypes: [Ingress, Egress]
  {{- $extra := $policy.clientsFrom }}
  {{- if eq $component "console" }}
  {{- $extra = $policy.consoleFrom }}
  {{- end }}
  ingress:
    {{- if or .callers $extra }}
    - ports:
        - {protocol: TCP, port: {{ ternary 8080 50051 (eq $component "console") }}}
      from:
        {{- range .callers }}
        - podSelector: {matchLabels: {{ include "weft.selectorLabels" (dict "root" $root "component" .) | fromYaml | toJson }}}
        {{- end }}
        {{- with $extra }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    {{- end }}
    {{- if eq $component "trainer" }}
    - ports:
        - {protocol: TCP, port: 50052}
      from:
        - podSelector: {matchLabels: {{ include "weft.selectorLabels" (dict "root" $root "component" "rank") | fromYaml | toJson }}}
    {{- end }}
    {{- include "weft.metricsIngress" $policy | nindent 4 }}
  egress:
    {{- include "weft.sharedEgress" . | nindent 4 }}
    {{- if and (eq $component "trainer") (eq $root.Values.trainer.launcher "kubernetes") }}
    - ports:
        {{- range $policy.apiServerPorts }}
        - {protocol: TCP, port: {{ int . }}}
        {{- end }}
      {{- with $policy.apiServerTo }}
      to:
        {{- toYaml . | nindent 8 }}
      {{- end }}
    {{- end }}
    {{- $interpreter := $root.Values.attribution.interpreter.url }}
    {{- if and (eq $component "attribution") $interpreter }}
    # The endpoint whose model labels features.
    - ports:
        - {protocol: TCP, port: {{ include "weft.urlPort" $interpreter }}}
      {{- with $policy.interpreterTo }}
      to:
        {{- toYaml . | nindent 8 }}
      {{- end }}
    {{- end }}
    {{- if and (has $component (list "activations" "attribution")) $root.Values.models.hub }}
    # The hub of models.
    - ports:
        - {protocol: TCP, port: 443}
    {{- end }}
{{- end }}
{{- end }}

{{/* Who may read metrics. Takes the values of networkPolicy. */}}
{{- define "weft.metricsIngress" -}}
{{- with .metricsFrom }}
- ports:
    - {protocol: TCP, port: 9090}
  from:
    {{- toYaml . | nindent 4 }}
{{- end }}
{{- end }}

{{/* Names, other components, the bucket, traces. Takes root, peers and hasBucket. */}}
{{- define "weft.sharedEgress" -}}
{{- $root := .root }}
{{- $policy := $root.Values.networkPolicy }}
- ports:
    - {protocol: UDP, port: 53}
    - {protocol: TCP, port: 53}
  {{- with $policy.dnsTo }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- range .peers }}
- ports:
    - {protocol: TCP, port: {{ ternary 8080 50051 (eq . "console") }}}
  to:
    - podSelector: {matchLabels: {{ include "weft.selectorLabels" (dict "root" $root "component" .) | fromYaml | toJson }}}
{{- end }}
{{- if .hasBucket }}
- ports:
    - {protocol: TCP, port: {{ include "weft.urlPort" $root.Values.bucket.url }}}
  {{- with $policy.bucketTo }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
{{- with $root.Values.tracing.otlpEndpoint }}
- ports:
    - {protocol: TCP, port: {{ include "weft.urlPort" . }}}
{{- end }}
{{- end }}

{{/* Port of a URL: its own or its scheme's. Takes the URL. */}}
{{- define "weft.urlPort" -}}
{{- $url := urlParse . }}
{{- $port := regexFind ":[0-9]+$" $url.host | trimPrefix ":" }}
{{- default (ternary "443" "80" (hasSuffix "https" $url.scheme)) $port }}
{{- end }}
