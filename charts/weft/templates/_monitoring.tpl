{{/* Not empty where objects of the Prometheus operator are to be made. Takes the root. */}}
{{- define "weft.monitoring" -}}
{{- $install := .Values.monitoring.install }}
{{- if or (eq $install "always") (and (eq $install "auto") (.Capabilities.APIVersions.Has "monitoring.coreos.com/v1")) }}
{{- "true" }}
{{- end }}
{{- end }}

{{/* Labels of an object that Prometheus or Grafana looks for. Takes root and component. */}}
{{- define "weft.monitoringLabels" -}}
{{ include "weft.labels" . }}
{{- with .root.Values.monitoring.labels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Takes root and component. */}}
{{- define "weft.serviceMonitor" -}}
{{- if and (include "weft.monitoring" .root) .root.Values.monitoring.monitors }}
apiVersion: monitoring.coreos.com/v1
kind: ServiceMonitor
metadata:
  name: {{ include "weft.componentName" . }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "weft.monitoringLabels" . | nindent 4 }}
spec:
  selector:
    matchLabels:
      {{- include "weft.selectorLabels" . | nindent 6 }}
  namespaceSelector:
    matchNames: [{{ .root.Release.Namespace }}]
  endpoints:
    - port: metrics
      path: /metrics
      interval: {{ int .root.Values.monitoring.scrapeIntervalSeconds }}s
{{- end }}
{{- end }}

{{/* Scrapes pods that no Service selects: ranks, and controllers that do not lead. Takes root and component. */}}
{{- define "weft.podMonitor" -}}
{{- if and (include "weft.monitoring" .root) .root.Values.monitoring.monitors }}
apiVersion: monitoring.coreos.com/v1
kind: PodMonitor
metadata:
  name: {{ include "weft.componentName" . }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "weft.monitoringLabels" . | nindent 4 }}
spec:
  selector:
    matchLabels:
      {{- include "weft.selectorLabels" . | nindent 6 }}
  namespaceSelector:
    matchNames: [{{ .root.Release.Namespace }}]
  podMetricsEndpoints:
    - port: metrics
      path: /metrics
      interval: {{ int .root.Values.monitoring.scrapeIntervalSeconds }}s
      # The job is called as a Service's would be.
      relabelings:
        - {targetLabel: job, replacement: {{ include "weft.componentName" . }}}
{{- end }}
{{- end }}
